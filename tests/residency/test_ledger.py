"""Single transitions of the ledger, and that `check` fails when a law is broken by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tokenvm.residency.ledger import Ledger
from tokenvm.residency.slots import SlotPool
from tokenvm.vocab import Answer, SlotId, Tier, UnitId

BOTH = (Tier.DEVICE, Tier.DISK)


def small_ledger() -> Ledger:
    return Ledger({Tier.DEVICE: 3, Tier.HOST: 3, Tier.DISK: 4})


def sealed_page(ledger: Ledger, *tiers: Tier) -> UnitId:
    """Make a sealed page with whole copies in exactly `tiers`."""
    unit = ledger.create(Tier.DEVICE)
    ledger.seal(unit)
    for tier in tiers:
        if tier is not Tier.DEVICE:
            ledger.land(ledger.begin(unit, Tier.DEVICE, tier))
    if tiers and Tier.DEVICE not in tiers:
        ledger.drop(unit, Tier.DEVICE)
    return unit


def test_slots_are_taken_lowest_first_and_taken_again() -> None:
    pool = SlotPool(3)
    assert [pool.take() for _ in range(3)] == [0, 1, 2]
    pool.give(SlotId(2))
    pool.give(SlotId(0))
    assert (pool.free, pool.used, pool.high_water) == (2, 1, 3)
    assert pool.take() == 0
    with pytest.raises(AssertionError, match="all 0 slots"):
        SlotPool(0).take()
    with pytest.raises(AssertionError, match="never taken"):
        SlotPool(3).give(SlotId(0))


def test_a_unit_is_found_in_its_fastest_whole_copy() -> None:
    ledger = small_ledger()
    unit = sealed_page(ledger, Tier.DISK)
    move = ledger.begin(unit, Tier.DISK, Tier.DEVICE)
    assert ledger.find(unit).tier is Tier.DISK
    assert ledger.arriving(unit, Tier.DEVICE)
    assert not ledger.resident(unit, Tier.DEVICE)
    ledger.land(move)
    found = ledger.find(unit)
    assert (found.answer, found.tier, found.slot) == (Answer.HIT, Tier.DEVICE, move.target_slot)


def test_the_source_stays_valid_until_the_destination_commits() -> None:
    ledger = small_ledger()
    unit = sealed_page(ledger, *BOTH)
    move = ledger.begin(unit, Tier.DEVICE, Tier.HOST)
    assert not ledger.droppable(unit, Tier.DEVICE)
    with pytest.raises(AssertionError, match="may not be dropped"):
        ledger.drop(unit, Tier.DEVICE)
    ledger.fail(move)
    assert ledger.free(Tier.HOST) == 3
    ledger.drop(unit, Tier.DEVICE)
    assert ledger.find(unit).tier is Tier.DISK


def test_the_last_whole_copy_is_never_dropped() -> None:
    ledger = small_ledger()
    unit = sealed_page(ledger)
    assert not ledger.droppable(unit, Tier.DEVICE)
    move = ledger.begin(unit, Tier.DEVICE, Tier.HOST)
    assert not ledger.droppable(unit, Tier.DEVICE), "a copy on its way is no copy yet"
    assert not ledger.droppable(unit, Tier.HOST)
    ledger.land(move)
    assert ledger.droppable(unit, Tier.DEVICE)
    assert not ledger.droppable(unit, Tier.DISK), "there is no copy to drop"


def test_a_pin_holds_the_device_copy_and_only_that() -> None:
    ledger = small_ledger()
    unit = sealed_page(ledger, *BOTH)
    ledger.pin([unit, unit])
    ledger.unpin([unit])
    assert ledger.pinned(unit)
    assert not ledger.droppable(unit, Tier.DEVICE)
    assert ledger.droppable(unit, Tier.DISK)
    ledger.unpin([unit])
    assert ledger.droppable(unit, Tier.DEVICE)
    with pytest.raises(AssertionError, match="not pinned"):
        ledger.unpin([unit])


def test_only_a_whole_device_copy_is_pinned() -> None:
    ledger = small_ledger()
    unit = sealed_page(ledger, Tier.DISK)
    move = ledger.begin(unit, Tier.DISK, Tier.DEVICE)
    with pytest.raises(AssertionError, match="no whole device copy"):
        ledger.pin([unit])
    ledger.fail(move)
    ledger.check()


def test_a_page_nobody_owns_goes_when_pins_and_moves_are_done_with_it() -> None:
    ledger = small_ledger()
    unit = sealed_page(ledger, *BOTH)
    move = ledger.begin(unit, Tier.DISK, Tier.HOST)
    ledger.pin([unit])
    ledger.release(unit)
    ledger.check()
    assert list(ledger.units()) == [unit]
    ledger.unpin([unit])
    ledger.check()
    assert ledger.free(Tier.DEVICE) == 3, "no move needs that copy"
    assert ledger.used(Tier.DISK) == ledger.used(Tier.HOST) == 1, "one is read, the other written"
    ledger.land(move)
    ledger.check()
    assert list(ledger.units()) == []
    assert all(ledger.used(tier) == 0 for tier in Tier)


def test_a_unit_is_lost_with_its_last_copy() -> None:
    ledger = small_ledger()
    unit = sealed_page(ledger, Tier.HOST, Tier.DISK)
    assert not ledger.lose(unit, Tier.HOST)
    assert ledger.find(unit).tier is Tier.DISK
    assert ledger.lose(unit, Tier.DISK)
    assert ledger.find(unit).answer is Answer.MISS
    ledger.check()
    ledger.release(unit)
    assert list(ledger.units()) == []


def test_a_copy_in_use_is_not_lost_under_its_reader() -> None:
    ledger = small_ledger()
    unit = sealed_page(ledger, *BOTH)
    move = ledger.begin(unit, Tier.DISK, Tier.HOST)
    with pytest.raises(AssertionError, match="end it first"):
        ledger.lose(unit, Tier.DISK)
    with pytest.raises(AssertionError, match="not whole"):
        ledger.lose(unit, Tier.HOST)
    ledger.fail(move)
    ledger.pin([unit])
    with pytest.raises(AssertionError, match="pinned"):
        ledger.lose(unit, Tier.DEVICE)
    ledger.check()


def test_a_move_starts_from_a_whole_copy_and_goes_where_there_is_none() -> None:
    ledger = small_ledger()
    unit = sealed_page(ledger, *BOTH)
    with pytest.raises(AssertionError, match="already has a copy"):
        ledger.begin(unit, Tier.DEVICE, Tier.DISK)
    ledger.begin(unit, Tier.DISK, Tier.HOST)
    ledger.drop(unit, Tier.DEVICE)
    with pytest.raises(AssertionError, match="not whole"):
        ledger.begin(unit, Tier.HOST, Tier.DEVICE)


def test_a_page_is_opened_again_only_where_it_is_alone() -> None:
    ledger = small_ledger()
    unit = sealed_page(ledger, *BOTH)
    with pytest.raises(AssertionError, match="would be stale"):
        ledger.unseal(unit)
    ledger.drop(unit, Tier.DISK)
    ledger.unseal(unit)
    assert not ledger.sealed(unit)
    ledger.seal(unit)
    move = ledger.begin(unit, Tier.DEVICE, Tier.HOST)
    with pytest.raises(AssertionError, match="would be stale"):
        ledger.unseal(unit)
    ledger.fail(move)
    ledger.unseal(unit)
    below = sealed_page(ledger, Tier.DISK)
    with pytest.raises(AssertionError, match="would be stale"):
        ledger.unseal(below)


def test_owners_are_counted_as_long_as_the_page_lives() -> None:
    ledger = small_ledger()
    unit = sealed_page(ledger)
    ledger.retain(unit)
    assert ledger.owners(unit) == 2
    ledger.release(unit)
    assert ledger.owners(unit) == 1
    assert unit in ledger
    ledger.release(unit)
    assert unit not in ledger


def test_freed_device_slots_and_high_water_are_told() -> None:
    ledger = small_ledger()
    first, second = sealed_page(ledger, *BOTH), sealed_page(ledger, *BOTH)
    slots = [ledger.slot(unit, Tier.DEVICE) for unit in (first, second)]
    ledger.drop(first, Tier.DEVICE)
    ledger.release(second)
    assert ledger.drain_freed() == slots
    assert ledger.drain_freed() == []
    assert (ledger.high_water(Tier.DEVICE), ledger.used(Tier.DEVICE)) == (2, 0)
    assert (ledger.high_water(Tier.HOST), ledger.capacity(Tier.DISK)) == (0, 4)


def _leak_a_slot(ledger: Ledger, unit: UnitId) -> None:
    ledger._pools[Tier.DEVICE].take()


def _give_a_slot_twice(ledger: Ledger, unit: UnitId) -> None:
    ledger._pools[Tier.DISK].give(ledger.slot(unit, Tier.DISK))


def _free_a_slot_in_use(ledger: Ledger, unit: UnitId) -> None:
    ledger._pools[Tier.DISK].give(ledger.slot(unit, Tier.DISK))
    ledger._pools[Tier.DISK].take()
    ledger._pools[Tier.DISK]._fresh += 1
    ledger._pools[Tier.DISK]._returned.append(ledger.slot(unit, Tier.DISK))


def _share_a_slot(ledger: Ledger, unit: UnitId) -> None:
    other = sealed_page(ledger)
    ledger._units[other].copies[Tier.DEVICE].slot = ledger.slot(unit, Tier.DEVICE)


def _lose_silently(ledger: Ledger, unit: UnitId) -> None:
    for tier in BOTH:
        ledger._forget(ledger._units[unit], tier)


def _forget_the_owner(ledger: Ledger, unit: UnitId) -> None:
    ledger._units[unit].references = 0


def _drop_under_a_pin(ledger: Ledger, unit: UnitId) -> None:
    ledger.pin([unit])
    ledger._forget(ledger._units[unit], Tier.DEVICE)


def _forget_a_move(ledger: Ledger, unit: UnitId) -> None:
    ledger.begin(unit, Tier.DISK, Tier.HOST)
    ledger._units[unit].copies[Tier.DISK].sources = 0


@pytest.mark.parametrize(
    ("break_law", "complaint"),
    [
        (_leak_a_slot, "slots leaked"),
        (_give_a_slot_twice, "slots leaked"),
        (_free_a_slot_in_use, "free and taken"),
        (_share_a_slot, "two units in one slot"),
        (_lose_silently, "is nowhere"),
        (_forget_the_owner, "no reason to stay"),
        (_drop_under_a_pin, "pinned, but not on the device"),
        (_forget_a_move, "do not add up"),
    ],
)
def test_check_fails_when_a_law_is_broken(
    break_law: Callable[[Ledger, UnitId], None], complaint: str
) -> None:
    ledger = small_ledger()
    unit = sealed_page(ledger, *BOTH)
    ledger.check()
    break_law(ledger, unit)
    with pytest.raises(AssertionError, match=complaint):
        ledger.check()
