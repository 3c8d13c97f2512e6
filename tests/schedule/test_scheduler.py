"""How sequences come, fall back and end."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures_schedule import EOS, VOCAB, counts, request, scheduler, step

from tokenvm.errors import RequestError
from tokenvm.schedule.plan import Event, FinishedEvent, Span, TokenEvent
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams

# Loss


def test_a_lost_sequence_is_read_again_and_keeps_its_tokens() -> None:
    schedule = scheduler()
    (lost,), (other,) = schedule.add(request("a", prompt=40)), schedule.add(request("b", prompt=5))
    step(schedule, token=3)
    events = step(schedule, token=4, lost={lost: 16})
    assert events == [TokenEvent("b", other, 4, 1)], "batch-mates go on, the lost one gets nothing"
    assert schedule.sequence(lost).tokens[40:] == [3], "what was produced stays"
    plan = schedule.plan()
    assert plan.spans == (Span(other, 6, 1, samples=True), Span(lost, 16, 25, samples=True))
    assert schedule.commit(plan, {lost: 8, other: 8}, {})[-1] == TokenEvent("a", lost, 8, 1)


def test_a_loss_in_the_middle_of_a_prompt() -> None:
    schedule = scheduler(max_tokens_per_forward=32)
    (seq,) = schedule.add(request("a", prompt=100))
    step(schedule)
    step(schedule, lost={seq: 16})
    assert schedule.plan().spans == (Span(seq, 16, 32, samples=False),)
    schedule.commit(schedule.plan(), {}, {seq: 64})
    assert schedule.sequence(seq).computed == 16, "nothing becomes valid that was not computed"


def test_a_shared_page_is_lost_in_a_step_one_has_no_part_in() -> None:
    schedule = scheduler(max_tokens_per_forward=1)
    (first,), (second,) = schedule.add(request("a", prompt=1)), schedule.add(request("b", prompt=17))
    while schedule.sequence(first).new_tokens < 5:
        step(schedule)
    schedule.sequence(second).computed = 16
    assert second not in counts(schedule.plan())
    step(schedule, lost={second: 0})
    assert schedule.sequence(second).computed == 0


# Ends


@pytest.mark.parametrize(
    ("params", "token", "end"),
    [
        ({}, EOS, ("stop", EOS)),
        ({"ignore_eos": True}, EOS, None),
        ({"stop_token_ids": [5, 8]}, 8, ("stop", 8)),
        ({"stop_token_ids": [5, 8]}, 7, None),
        ({"stop_token_ids": [EOS], "ignore_eos": True}, EOS, ("stop", EOS)),
        ({"max_tokens": 1}, 7, ("length", None)),
        ({"max_tokens": 1}, EOS, ("stop", EOS)),
    ],
)
def test_ends(params: dict[str, Any], token: int, end: tuple[str, int | None] | None) -> None:
    schedule = scheduler()
    (seq,) = schedule.add(request("a", prompt=3, **params))
    expected: list[Event] = [TokenEvent("a", seq, token, 0)]
    if end:
        expected.append(FinishedEvent("a", seq, *end))
    assert step(schedule, token) == expected
    assert schedule.has_work is (end is None)


def test_abort_ends_the_waiting_and_the_running() -> None:
    schedule = scheduler(max_num_seqs=1)
    (running,), (waiting,) = schedule.add(request("a", prompt=3)), schedule.add(request("b", prompt=3))
    step(schedule)
    assert schedule.abort("b") == [FinishedEvent("b", waiting, "abort")]
    assert schedule.abort("nobody") == []
    assert schedule.abort("a") == [FinishedEvent("a", running, "abort")]
    assert (schedule.has_work, schedule.most_pages) == (False, 0)


def test_text_can_stop_a_sequence() -> None:
    schedule = scheduler()
    (seq,) = schedule.add(request("a", prompt=3))
    step(schedule)
    assert (schedule.stop(seq), schedule.has_work) == (FinishedEvent("a", seq, "stop"), False)


# Refusals


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ((), "give at least one token"),
        ((1, VOCAB), "token id 100 .* from 0 to 99"),
        ((-1,), "token id -1 .* from 0 to 99"),
        ((1.5,), "token id 1.5 .* whole numbers"),
        (("7",), "token id '7' .* whole numbers"),
        ((1,) * 64, "shorten it to 63 tokens"),
        ((1,) * 50, "needs 4 pages .* hold 3: raise nvme_limit, host_memory or kv_limit, or lower"),
    ],
)
def test_a_refused_request_is_told_what_to_do_and_leaves_nothing_behind(
    prompt: tuple[Any, ...], says: str
) -> None:
    schedule = scheduler(max_model_len=64, held_pages=3)
    with pytest.raises(RequestError, match=says):
        schedule.add(Request("a", prompt, SamplingParams()))
    assert (schedule.has_work, schedule.most_pages) == (False, 0)
    schedule.add(request("b", prompt=3))


def test_an_id_is_refused_while_its_first_request_lives() -> None:
    schedule = scheduler()
    schedule.add(request("a", 3, max_tokens=1))
    with pytest.raises(RequestError, match="of its own"):
        schedule.add(request("a", 5))
    while schedule.has_work:
        step(schedule)
    schedule.add(request("a", 5))


def test_a_sequence_aborted_during_its_step_is_passed_over() -> None:
    schedule = scheduler()
    (first,), (second,) = schedule.add(request("a", 3)), schedule.add(request("b", 3))
    plan = schedule.plan()
    schedule.abort("a")
    events = schedule.commit(plan, {first: 7, second: 8}, {first: 0})
    assert [event.seq for event in events] == [second]
    assert schedule.sequence(second).tokens[-1] == 8
