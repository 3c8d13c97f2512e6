"""How many run, and how much of each, under limits of memory."""

from __future__ import annotations

import pytest
from fixtures_schedule import counts, request, scheduler, step

from tokenvm.errors import RequestError
from tokenvm.schedule.plan import FinishedEvent
from tokenvm.schedule.request import Status


def test_at_most_max_num_seqs_run() -> None:
    schedule = scheduler(max_num_seqs=2)
    seqs = [schedule.add(request(name, prompt=5, max_tokens=2))[0] for name in "abc"]
    schedule.plan()
    assert schedule.running == tuple(seqs[:2])
    assert schedule.sequence(seqs[2]).status is Status.WAITING
    schedule.abort("a")
    schedule.plan()
    assert schedule.running == tuple(seqs[1:])


def test_each_running_sequence_has_a_slot_and_one_is_spare() -> None:
    schedule = scheduler(device_slots=3)
    for name in "abc":
        schedule.add(request(name, prompt=5))
    schedule.plan()
    assert len(schedule.running) == 2


def test_nobody_is_admitted_past_one_who_must_wait() -> None:
    schedule = scheduler(held_pages=10)
    (first,) = schedule.add(request("a", prompt=100, max_tokens=13))  # 7 pages
    schedule.add(request("b", prompt=60, max_tokens=5))  # 4 pages: one too many
    schedule.add(request("c", prompt=1, max_tokens=1))
    schedule.plan()
    assert schedule.running == (first,)


def test_the_last_token_needs_no_page() -> None:
    schedule = scheduler(held_pages=2)
    schedule.add(request("fits", prompt=30, max_tokens=3))
    with pytest.raises(RequestError, match="needs 3 pages"):
        schedule.add(request("not", prompt=30, max_tokens=4))
    assert schedule.most_pages == 2


@pytest.mark.parametrize(
    ("device_slots", "computed", "chunk"), [(2, 0, 32), (2, 5, 27), (9, 0, 144), (9, 16, 144), (9, 17, 143)]
)
def test_a_chunk_fills_its_open_page_and_every_slot_that_is_left(
    device_slots: int, computed: int, chunk: int
) -> None:
    schedule = scheduler(device_slots=device_slots)
    (seq,) = schedule.add(request("a", prompt=500))
    schedule.plan()
    schedule.sequence(seq).computed = computed
    assert counts(schedule.plan()) == {seq: chunk}


def test_a_span_that_fills_an_open_page_ends_with_a_page_where_open_pages_take_more() -> None:
    for open_slots, counted in ((1, [44, 44, 12]), (3, [44, 36, 20])):
        schedule = scheduler(open_slots=open_slots, max_tokens_per_forward=44)
        (seq,) = schedule.add(request("a", prompt=100))
        for count in counted:
            plan = schedule.plan()
            assert counts(plan) == {seq: count}
            schedule.commit(plan, dict.fromkeys(plan.sampled, 7), {})


def test_open_pages_that_take_more_slots_leave_room_for_fewer_sequences() -> None:
    schedule = scheduler(open_slots=3, device_slots=9)
    seqs = [schedule.add(request(name, prompt=5))[0] for name in "abc"]
    schedule.plan()
    assert schedule.running == tuple(seqs[:2])
    with pytest.raises(AssertionError, match="spare"):
        scheduler(open_slots=3, device_slots=3)


def test_raw_bytes_of_open_pages_need_room_on_the_device_but_none_below() -> None:
    """Eight pages and two raw slots make ten; pages that lie below need no raw slots beside them."""
    for held, lower, fits in ((10, 0, True), (9, 0, False), (9, 8, True), (9, 7, False)):
        schedule = scheduler(open_slots=3, held_pages=held, lower_pages=lower)
        if fits:
            schedule.add(request("a", prompt=8 * 16, max_tokens=1))
            continue
        with pytest.raises(RequestError, match=r"needs 8 pages .* hold 7:"):
            schedule.add(request("a", prompt=8 * 16, max_tokens=1))


def test_sequences_share_the_pages_that_one_step_may_create() -> None:
    schedule = scheduler(device_slots=12, max_num_seqs=3)
    seqs = [schedule.add(request(name, prompt=50))[0] for name in "abc"]
    assert counts(schedule.plan()) == {seqs[0]: 50, seqs[1]: 50, seqs[2]: 32}, (
        "two slots for open pages are left"
    )
    schedule = scheduler(device_slots=8, max_num_seqs=3)
    seqs = [schedule.add(request(name, prompt=40))[0] for name in "abc"]
    assert counts(schedule.plan()) == {seqs[0]: 40, seqs[1]: 40}, "six pages, all there are for this step"


def test_a_plan_says_when_the_most_pages_exceed_the_device() -> None:
    for slots, spills in ((4, False), (3, True)):
        schedule = scheduler(device_slots=slots)
        schedule.add(request("a", prompt=40, max_tokens=25))
        assert schedule.plan().spills is spills


def test_max_model_len_ends_a_sequence() -> None:
    schedule = scheduler(max_model_len=12)
    (seq,) = schedule.add(request("a", prompt=10, max_tokens=100))
    step(schedule)
    assert step(schedule)[-1] == FinishedEvent("a", seq, "length")


@pytest.mark.parametrize("name", ["max_num_seqs", "max_tokens_per_forward", "block_tokens", "held_pages"])
def test_limits_that_can_never_run_anything_are_our_bug(name: str) -> None:
    with pytest.raises(AssertionError):
        scheduler(**{name: 0})
    with pytest.raises(AssertionError, match="spare"):
        scheduler(device_slots=1)
