"""How sequences begin: behind what is found of their prompts, and with their prompts scored."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures_schedule import VOCAB, Kept, counts, request, scheduler, step

from tokenvm.errors import RequestError
from tokenvm.schedule.plan import FinishedEvent, Span
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams


def test_a_sequence_begins_behind_what_is_found() -> None:
    schedule = scheduler(Kept(pages={0: 2}))
    (seq,) = schedule.add(request("a", prompt=40))
    plan = schedule.plan()
    assert plan.begins == (seq,)
    assert plan.spans == (Span(seq, 32, 8, True),)
    schedule.commit(plan, {seq: 7}, {})
    assert schedule.plan().begins == ()


def test_one_whose_prompt_is_found_soon_waits_among_those_that_run() -> None:
    kept = Kept(in_flight={0})
    schedule = scheduler(kept)
    (seq,) = schedule.add(request("a", prompt=40))
    for _ in range(3):
        plan = schedule.plan()
        assert (plan.spans, plan.begins) == ((), ())
        assert schedule.running == (seq,)
        assert schedule.has_work
        schedule.commit(plan, {}, {})
    (other,) = schedule.add(request("b", prompt=5))
    assert counts(schedule.plan()) == {other: 5}
    kept.in_flight.clear()
    kept.pages[seq] = 1
    assert counts(schedule.plan()) == {other: 5, seq: 24}


def test_of_a_request_whose_prompt_is_found_soon_one_is_asked() -> None:
    kept = Kept(in_flight={0, 1, 2})
    schedule = scheduler(kept)
    schedule.add(request("a", prompt=40, n=3))
    schedule.plan()
    assert kept.asked == [0]


def test_a_sequence_without_room_does_not_begin() -> None:
    kept = Kept()
    schedule = scheduler(kept, max_tokens_per_forward=8)
    (first,), (second,) = schedule.add(request("a", prompt=40)), schedule.add(request("b", prompt=40))
    assert schedule.plan().begins == (first,)
    assert not schedule.sequence(second).begun
    assert kept.asked == [first]


def test_pages_in_common_are_charged_once() -> None:
    """Ten pages of prompt, found of all but the first; alone each takes eleven."""
    kept = Kept(pages=dict.fromkeys(range(1, 8), 10))
    for found, fit in ((kept, 4), (Kept(), 1)):
        schedule = scheduler(found, device_slots=16, max_num_seqs=4)
        schedule.add(request("a", prompt=161, max_tokens=8))
        step(schedule)
        for name in "bcdefg":
            schedule.add(request(name, prompt=161, max_tokens=8))
        step(schedule)
        assert len(schedule.running) == fit


def test_a_filled_sequence_has_begun_already() -> None:
    kept = Kept()
    schedule = scheduler(kept)
    (seq,) = schedule.add(request("a", prompt=40))
    schedule.sequence(seq).computed = 32
    plan = schedule.plan()
    assert (plan.begins, kept.asked) == ((), [])
    assert plan.spans == (Span(seq, 32, 8, True),)


# Scored prompts


def test_a_scored_prompt_is_read_in_chunks_of_the_rows_that_have_logits() -> None:
    kept = Kept(pages={0: 2})
    schedule = scheduler(kept, max_num_seqs=4)
    (seq,) = schedule.add(request("a", prompt=10, prompt_logprobs=0, max_tokens=2))
    for start, count, samples in ((0, 4, False), (4, 4, False), (8, 2, True)):
        assert schedule.plan().spans == (Span(seq, start, count, samples, scores=True),)
        step(schedule)
    assert schedule.plan().spans == (Span(seq, 10, 1, True, scores=False),)
    assert kept.asked == [], "all of it has to be computed"


def test_rows_with_logits_are_shared_with_those_that_sample() -> None:
    schedule = scheduler(max_num_seqs=4)
    (decoding,) = schedule.add(request("a", prompt=5))
    step(schedule)
    (scored,), (plain,) = (
        schedule.add(request("b", prompt=20, prompt_logprobs=1)),
        schedule.add(request("c", prompt=20)),
    )
    for _ in range(30):
        plan = schedule.plan()
        assert sum(span.count if span.scores else span.samples for span in plan.spans) <= 4
        step(schedule)
        if not schedule.has_work:
            break
    assert not schedule.has_work
    del decoding, scored, plain


def test_of_several_sequences_the_first_scores_the_prompt() -> None:
    schedule = scheduler(max_num_seqs=8)
    first, second = schedule.add(request("a", prompt=6, n=2, prompt_logprobs=0))
    scores = {span.seq: span.scores for span in schedule.plan().spans}
    assert scores == {first: True, second: False}


def test_a_scored_prompt_read_again_ends_before_what_was_produced() -> None:
    schedule = scheduler(max_num_seqs=40, device_slots=100)
    (seq,) = schedule.add(request("a", prompt=20, prompt_logprobs=0))
    for _ in range(3):
        step(schedule)
    step(schedule, lost={seq: 16})
    assert schedule.plan().spans == (Span(seq, 16, 4, False, scores=True),)
    step(schedule)
    assert schedule.plan().spans == (Span(seq, 20, 3, True, scores=False),)


# Aborts and refusals


def test_abort_during_prefill() -> None:
    schedule = scheduler(max_tokens_per_forward=8)
    (seq,) = schedule.add(request("a", prompt=40))
    (after,) = schedule.add(request("b", prompt=4))
    step(schedule)
    plan = schedule.plan()
    assert schedule.abort("a") == [FinishedEvent("a", seq, "abort")]
    assert schedule.commit(plan, {}, {}) == []
    assert counts(schedule.plan()) == {after: 4}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"params": SamplingParams(logit_bias={VOCAB: 1.0})}, "logit_bias names token 100"),
        ({"priority": 1.5}, "priority=1.5 .* whole number"),
        ({"priority": True}, "priority=True"),
        ({"request_class": None}, "request_class=None .* text"),
        ({"cache_salt": 3}, "cache_salt=3"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, Any], says: str) -> None:
    schedule = scheduler()
    with pytest.raises(RequestError, match=says):
        schedule.add(
            Request(**{"request_id": "a", "prompt_token_ids": (1, 2), "params": SamplingParams()} | changed)
        )
    assert (schedule.has_work, schedule.most_pages) == (False, 0)
