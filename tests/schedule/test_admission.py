"""Who is admitted: by priority and arrival, as far as tiers and device are foreseen to hold."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures_schedule import Kept, counts, request, scheduler, step

from tokenvm.schedule.lengths import WARM
from tokenvm.schedule.plan import FinishedEvent
from tokenvm.schedule.request import Status
from tokenvm.schedule.scheduler import Scheduler
from tokenvm.vocab import SeqId

# A page has 16 tokens: with prompts of 16 and up to 49 tokens to come, 4 pages each at most.
FOUR_PAGES: dict[str, Any] = {"prompt": 16, "max_tokens": 49}


def add(schedule: Scheduler, name: str, **asked: Any) -> SeqId:
    (seq,) = schedule.add(request(name, **asked))
    return seq


def warm(schedule: Scheduler, answer: int = 1, **asked: Any) -> None:
    """Let as many requests as it takes end after `answer` tokens."""
    for number in range(WARM):
        seq = add(schedule, f"warm{number}", **asked)
        for _ in range(answer):
            step(schedule)
        schedule.stop(seq)


# n


def test_each_of_n_sequences_is_one_of_its_own() -> None:
    schedule = scheduler()
    seqs = schedule.add(request("a", prompt=20, n=3))
    assert [schedule.sequence(seq).index for seq in seqs] == [0, 1, 2]
    assert counts(schedule.plan()) == dict.fromkeys(seqs, 20)
    assert schedule.most_pages == 6


def test_a_request_lives_until_the_last_of_its_sequences_ends() -> None:
    schedule = scheduler()
    first, second = schedule.add(request("a", prompt=3, n=2))
    step(schedule)
    schedule.stop(first)
    with pytest.raises(Exception, match="of its own"):
        schedule.add(request("a", prompt=3))
    assert schedule.abort("a") == [FinishedEvent("a", second, "abort")]
    schedule.add(request("a", prompt=3))


def test_n_may_be_more_than_run_at_once() -> None:
    schedule = scheduler(max_num_seqs=2)
    seqs = schedule.add(request("a", prompt=3, n=5, max_tokens=2))
    ended: list[SeqId] = []
    while schedule.has_work:
        assert len(schedule.running) <= 2
        ended += [event.seq for event in step(schedule) if isinstance(event, FinishedEvent)]
    assert tuple(ended) == seqs


# Order


def test_a_lower_priority_number_runs_first_and_equals_in_turn() -> None:
    schedule = scheduler(max_num_seqs=1)
    asked = [("a", 1), ("b", 0), ("c", 1), ("d", -2), ("e", 0)]
    for name, priority in asked:
        schedule.add(request(name, prompt=3, max_tokens=1, priority=priority))
    ended = []
    while schedule.has_work:
        ended += [event.request_id for event in step(schedule) if isinstance(event, FinishedEvent)]
    assert ended == ["d", "b", "e", "a", "c"]


def test_prefills_come_by_priority() -> None:
    schedule = scheduler(max_tokens_per_forward=10)
    late = add(schedule, "late", prompt=100, priority=1)
    step(schedule)
    early = add(schedule, "early", prompt=15)
    assert counts(schedule.plan()) == {early: 10}
    step(schedule)
    assert counts(schedule.plan()) == {early: 5, late: 5}


def test_waiting_ones_cost_a_step_nothing() -> None:
    """Of five thousand that wait, only the next few are ever looked at, and not in every step."""
    kept = Kept()
    schedule = scheduler(kept, device_slots=6, max_num_seqs=20)
    add(schedule, "first", **FOUR_PAGES)
    for number in range(5000):
        add(schedule, f"r{number}", **FOUR_PAGES)
    step(schedule)
    kept.asked.clear()
    for _ in range(40):
        step(schedule)
    assert set(kept.asked) <= {1, 2, 3}
    assert len(kept.asked) <= 6


def test_many_may_leave_the_queue_from_anywhere() -> None:
    schedule = scheduler(max_num_seqs=1)
    seqs = [add(schedule, f"r{number}", prompt=3, max_tokens=1) for number in range(1000)]
    for number in range(999):
        schedule.abort(f"r{number}")
    schedule.plan()
    assert schedule.running == (seqs[999],)
    assert len(schedule._admission.queue) == 0


# The device


def test_nobody_is_admitted_who_is_foreseen_to_crowd_the_device() -> None:
    for slots, fit in ((8, 2), (11, 2), (12, 3)):
        schedule = scheduler(device_slots=slots)
        for name in "abc":
            add(schedule, name, **FOUR_PAGES)
        schedule.plan()
        assert len(schedule.running) == fit


def test_without_lookahead_all_that_the_tiers_hold_run() -> None:
    schedule = scheduler(device_slots=8, lookahead=False)
    for name in "abc":
        add(schedule, name, **FOUR_PAGES)
    assert schedule.plan().spills
    assert len(schedule.running) == 3


def test_what_answers_are_expected_to_become_lets_more_run() -> None:
    """Once answers are known to be short, sequences that might have four pages are expected to have two."""
    schedule = scheduler(device_slots=8)
    warm(schedule, answer=2, **FOUR_PAGES)
    for name in "abcd":
        add(schedule, name, **FOUR_PAGES)
    schedule.plan()
    assert len(schedule.running) == 4


def test_one_who_will_have_ended_by_then_makes_room() -> None:
    """The long one takes all the device in the end; a short one ends before."""
    schedule = scheduler(device_slots=8)
    long = add(schedule, "long", prompt=16, max_tokens=113)  # 8 pages
    short = add(schedule, "short", prompt=16, max_tokens=17)  # 2 pages
    step(schedule)
    assert schedule.running == (long, short)
    another = add(schedule, "another", prompt=16, max_tokens=100)
    step(schedule)
    assert schedule.sequence(another).status is Status.WAITING


def test_who_takes_more_than_the_device_is_charged_what_it_cannot_do_without() -> None:
    schedule = scheduler(device_slots=8)
    huge = add(schedule, "huge", prompt=200, max_tokens=100)
    beside = add(schedule, "beside", prompt=16, max_tokens=49 + 32)  # 6 pages and the 2 of the huge one
    add(schedule, "more", prompt=16, max_tokens=81)
    schedule.plan()
    assert schedule.running == (huge, beside)
    assert schedule.sequence(huge).oversize


def test_somebody_is_admitted_when_nobody_runs() -> None:
    schedule = scheduler(device_slots=2, max_num_seqs=3)
    huge = [add(schedule, name, prompt=200) for name in "ab"]
    schedule.plan()
    assert schedule.running == (huge[0],)


def test_nobody_overtakes_one_who_does_not_fit() -> None:
    schedule = scheduler(device_slots=8)
    add(schedule, "runs", **FOUR_PAGES)
    add(schedule, "large", prompt=100, max_tokens=20)
    add(schedule, "small", prompt=1, max_tokens=1)
    schedule.plan()
    assert len(schedule.running) == 1


@pytest.mark.parametrize("priority", [0, 1])
def test_endless_arrivals_starve_nobody_of_equal_priority(priority: int) -> None:
    """One who fills the device is admitted while ever new ones come that would fit beside those that run.

    Of a lower priority, it waits for as long as others come: that is what priorities are for.
    """
    schedule = scheduler(device_slots=8, max_num_seqs=8)
    for name in "abc":
        add(schedule, name, prompt=16, max_tokens=17)
    large = add(schedule, "large", prompt=100, max_tokens=20, priority=priority)
    ended: set[SeqId] = set()
    for number in range(200):
        add(schedule, f"late{number}", prompt=16, max_tokens=17)
        ended |= {event.seq for event in step(schedule) if isinstance(event, FinishedEvent)}
    assert (large in ended) is (priority == 0)
    while schedule.has_work:
        step(schedule)


@pytest.mark.parametrize("max_tokens", [1, 2])
def test_a_single_token_is_answered_under_a_full_cache(max_tokens: int) -> None:
    schedule = scheduler(device_slots=5, held_pages=5)
    add(schedule, "full", prompt=16, max_tokens=49)
    short = add(schedule, "short", prompt=16, max_tokens=max_tokens)
    ended: set[SeqId] = set()
    for _ in range(60):
        ended |= {event.seq for event in step(schedule) if isinstance(event, FinishedEvent)}
    assert short in ended
    assert not schedule.has_work
