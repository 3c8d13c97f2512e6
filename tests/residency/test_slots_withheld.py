"""Slots that are not used: a closed tier, a tier without space, slots that failed."""

from tokenvm.residency.slots import SlotPool


def test_a_closed_pool_has_no_free_slot_and_keeps_those_in_use() -> None:
    pool = SlotPool(4)
    held = pool.take()
    pool.closed = True
    assert (pool.free, pool.used, pool.usable) == (0, 1, 1)
    pool.give(held)
    pool.closed = False
    assert (pool.free, pool.used, pool.usable) == (4, 0, 4)


def test_slots_beyond_the_bound_are_not_taken() -> None:
    pool = SlotPool(6)
    held = [pool.take() for _ in range(5)]
    pool.bound = 3
    for slot in (held[4], held[1]):
        pool.give(slot)
    assert (pool.free, pool.used, pool.usable) == (1, 3, 4)
    assert pool.take() == held[1]
    assert pool.free == 0
    pool.bound = 6
    assert pool.free == 2


def test_a_slot_that_failed_is_left_alone_until_others_have() -> None:
    pool = SlotPool(32)
    slots = [pool.take() for _ in range(4)]
    for slot in slots[:3]:
        pool.give(slot)
        pool.retire(slot)
    assert pool.retired == 2, "at most a sixteenth"
    assert pool.used + pool.free + pool.retired == 32
    assert pool.take() == slots[0], "the one that failed first serves again"
    assert pool.take() == 4
    assert set(slots[1:3]) <= pool.free_slots()


def test_a_slot_that_is_withheld_once_given_back_serves_nobody() -> None:
    pool = SlotPool(4)
    first, second = pool.take(), pool.take()
    pool.bound = 1
    assert pool.serves(first)
    assert not pool.serves(second)
    pool.closed = True
    assert not pool.serves(first)
    pool.closed, pool.writable = False, False
    assert not pool.serves(first)
