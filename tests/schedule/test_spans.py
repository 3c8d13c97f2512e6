"""What each step computes of whom: decodes, then chunks of prefill, each bounded."""

from __future__ import annotations

import pytest
from fixtures_schedule import counts, request, scheduler, step

from tokenvm.schedule.plan import FinishedEvent, Plan, Span, TokenEvent
from tokenvm.vocab import SeqId


def test_a_prompt_is_read_then_tokens_come_one_by_one() -> None:
    schedule = scheduler()
    (seq,) = schedule.add(request("a", prompt=20, max_tokens=3))
    plan = schedule.plan()
    assert plan.spans == (Span(seq, 0, 20, samples=True),)
    assert not plan.decodes
    assert schedule.commit(plan, {seq: 5}, {}) == [TokenEvent("a", seq, 5, 0)]
    plan = schedule.plan()
    assert plan.spans == (Span(seq, 20, 1, samples=True),)
    assert plan.decodes
    assert schedule.commit(plan, {seq: 6}, {}) == [TokenEvent("a", seq, 6, 1)]
    assert step(schedule) == [TokenEvent("a", seq, 7, 2), FinishedEvent("a", seq, "length")]
    assert not schedule.has_work
    assert schedule.plan() == Plan(())


def test_a_long_prompt_is_read_in_chunks_and_sampled_after_the_last() -> None:
    schedule = scheduler(max_tokens_per_forward=8)
    (seq,) = schedule.add(request("a", prompt=20))
    for start, count, samples in ((0, 8, False), (8, 8, False), (16, 4, True), (20, 1, True)):
        assert schedule.plan().spans == (Span(seq, start, count, samples),)
        step(schedule)
    assert schedule.sequence(seq).new_tokens == 2


def test_decodes_run_before_prefills() -> None:
    schedule = scheduler(max_tokens_per_forward=10)
    (first,) = schedule.add(request("a", prompt=10))
    step(schedule)
    (second,) = schedule.add(request("b", prompt=30))
    step(schedule)
    (third,) = schedule.add(request("c", prompt=4))
    plan = schedule.plan()
    assert [span.seq for span in plan.spans] == [first, second]
    assert counts(plan) == {first: 1, second: 9}
    while schedule.sequence(third).new_tokens == 0:
        step(schedule)
    assert [span.seq for span in schedule.plan().spans] == [first, second, third]


def test_a_prompt_of_one_token_does_not_overtake() -> None:
    schedule = scheduler(max_tokens_per_forward=1)
    (long,) = schedule.add(request("long", prompt=50))
    for number in range(50):
        schedule.add(request(f"short{number}", prompt=1, max_tokens=1))
        step(schedule)
    assert schedule.sequence(long).new_tokens == 1


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_endless_arrivals_starve_nobody(tokens: int) -> None:
    """The long prompt is read while ever new short requests fill whatever the forward pass has left."""
    schedule = scheduler(max_tokens_per_forward=tokens, max_num_seqs=5, device_slots=6, block_tokens=4)
    for number in range(3):
        schedule.add(request(f"early{number}", prompt=1 + number, max_tokens=20))
    (long,) = schedule.add(request("long", prompt=100, max_tokens=5))
    ended: set[SeqId] = set()
    for number in range(250):
        if number % 2:
            schedule.add(request(f"late{number}", prompt=1 + number % 3, max_tokens=6))
        ended |= {event.seq for event in step(schedule) if isinstance(event, FinishedEvent)}
    assert long in ended
