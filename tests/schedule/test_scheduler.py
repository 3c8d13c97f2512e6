"""What the scheduler promises, one case at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tokenvm.errors import RequestError
from tokenvm.schedule.plan import Event, FinishedEvent, Plan, Span, TokenEvent
from tokenvm.schedule.request import Request, Status
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.schedule.scheduler import Limits, Scheduler
from tokenvm.vocab import SeqId

VOCAB = 100
EOS = 99


ROOMY = Limits(
    max_num_seqs=4,
    max_tokens_per_forward=1000,
    max_model_len=1000,
    block_tokens=16,
    device_slots=100,
    held_pages=1000,
    vocab_size=VOCAB,
    eos_token_ids=frozenset({EOS}),
)


def scheduler(**changed: Any) -> Scheduler:
    return Scheduler(replace(ROOMY, **changed))


def request(name: str, prompt: int, max_tokens: int = 10, **params: Any) -> Request:
    return Request(name, tuple([1] * prompt), SamplingParams(max_tokens=max_tokens, **params))


def step(schedule: Scheduler, token: int = 7, lost: dict[SeqId, int] | None = None) -> list[Event]:
    """Plan and commit a step in which every sequence samples `token`."""
    plan = schedule.plan()
    return schedule.commit(plan, dict.fromkeys(plan.sampled, token), lost or {})


def counts(plan: Plan) -> dict[int, int]:
    return {span.seq: span.count for span in plan.spans}


def test_a_prompt_is_read_then_tokens_come_one_by_one() -> None:
    schedule = scheduler()
    seq = schedule.add(request("a", prompt=20, max_tokens=3))
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
    seq = schedule.add(request("a", prompt=20))
    for start, count, samples in ((0, 8, False), (8, 8, False), (16, 4, True), (20, 1, True)):
        assert schedule.plan().spans == (Span(seq, start, count, samples),)
        step(schedule)
    assert schedule.sequence(seq).new_tokens == 2


def test_decodes_run_before_prefills() -> None:
    schedule = scheduler(max_tokens_per_forward=10)
    first = schedule.add(request("a", prompt=10))
    step(schedule)
    second = schedule.add(request("b", prompt=30))
    step(schedule)
    third = schedule.add(request("c", prompt=4))
    plan = schedule.plan()
    assert [span.seq for span in plan.spans] == [first, second]
    assert counts(plan) == {first: 1, second: 9}
    while schedule.sequence(third).new_tokens == 0:
        step(schedule)
    assert [span.seq for span in schedule.plan().spans] == [first, second, third]


def test_a_prompt_of_one_token_does_not_overtake() -> None:
    schedule = scheduler(max_tokens_per_forward=1)
    long = schedule.add(request("long", prompt=50))
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
    long = schedule.add(request("long", prompt=100, max_tokens=5))
    ended: set[SeqId] = set()
    for number in range(250):
        if number % 2:
            schedule.add(request(f"late{number}", prompt=1 + number % 3, max_tokens=6))
        ended |= {event.seq for event in step(schedule) if isinstance(event, FinishedEvent)}
    assert long in ended


# Limits


def test_at_most_max_num_seqs_run() -> None:
    schedule = scheduler(max_num_seqs=2)
    seqs = [schedule.add(request(name, prompt=5, max_tokens=2)) for name in "abc"]
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
    first = schedule.add(request("a", prompt=100, max_tokens=13))  # 7 pages
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
    seq = schedule.add(request("a", prompt=500))
    schedule.plan()
    schedule.sequence(seq).computed = computed
    assert counts(schedule.plan()) == {seq: chunk}


def test_a_span_that_fills_an_open_page_ends_with_a_page_where_open_pages_take_more() -> None:
    for open_slots, counted in ((1, [44, 44, 12]), (3, [44, 36, 20])):
        schedule = scheduler(open_slots=open_slots, max_tokens_per_forward=44)
        seq = schedule.add(request("a", prompt=100))
        for count in counted:
            plan = schedule.plan()
            assert counts(plan) == {seq: count}
            schedule.commit(plan, dict.fromkeys(plan.sampled, 7), {})


def test_open_pages_that_take_more_slots_leave_room_for_fewer_sequences() -> None:
    schedule = scheduler(open_slots=3, device_slots=9)
    seqs = [schedule.add(request(name, prompt=5)) for name in "abc"]
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
    seqs = [schedule.add(request(name, prompt=50)) for name in "abc"]
    assert counts(schedule.plan()) == {seqs[0]: 50, seqs[1]: 50, seqs[2]: 32}, (
        "two slots for open pages are left"
    )
    schedule = scheduler(device_slots=8, max_num_seqs=3)
    seqs = [schedule.add(request(name, prompt=40)) for name in "abc"]
    assert counts(schedule.plan()) == {seqs[0]: 40, seqs[1]: 40}, "six pages, all there are for this step"


def test_a_plan_says_when_the_most_pages_exceed_the_device() -> None:
    for slots, spills in ((4, False), (3, True)):
        schedule = scheduler(device_slots=slots)
        schedule.add(request("a", prompt=40, max_tokens=25))
        assert schedule.plan().spills is spills


def test_max_model_len_ends_a_sequence() -> None:
    schedule = scheduler(max_model_len=12)
    seq = schedule.add(request("a", prompt=10, max_tokens=100))
    step(schedule)
    assert step(schedule)[-1] == FinishedEvent("a", seq, "length")


@pytest.mark.parametrize("name", ["max_num_seqs", "max_tokens_per_forward", "block_tokens", "held_pages"])
def test_limits_that_can_never_run_anything_are_our_bug(name: str) -> None:
    with pytest.raises(AssertionError):
        scheduler(**{name: 0})
    with pytest.raises(AssertionError, match="spare"):
        scheduler(device_slots=1)


# Loss


def test_a_lost_sequence_is_read_again_and_keeps_its_tokens() -> None:
    schedule = scheduler()
    lost, other = schedule.add(request("a", prompt=40)), schedule.add(request("b", prompt=5))
    step(schedule, token=3)
    events = step(schedule, token=4, lost={lost: 16})
    assert events == [TokenEvent("b", other, 4, 1)], "batch-mates go on, the lost one gets nothing"
    assert schedule.sequence(lost).tokens[40:] == [3], "what was produced stays"
    plan = schedule.plan()
    assert plan.spans == (Span(other, 6, 1, samples=True), Span(lost, 16, 25, samples=True))
    assert schedule.commit(plan, {lost: 8, other: 8}, {})[-1] == TokenEvent("a", lost, 8, 1)


def test_a_loss_in_the_middle_of_a_prompt() -> None:
    schedule = scheduler(max_tokens_per_forward=32)
    seq = schedule.add(request("a", prompt=100))
    step(schedule)
    step(schedule, lost={seq: 16})
    assert schedule.plan().spans == (Span(seq, 16, 32, samples=False),)
    schedule.commit(schedule.plan(), {}, {seq: 64})
    assert schedule.sequence(seq).computed == 16, "nothing becomes valid that was not computed"


def test_a_shared_page_is_lost_in_a_step_one_has_no_part_in() -> None:
    schedule = scheduler(max_tokens_per_forward=1)
    first, second = schedule.add(request("a", prompt=1)), schedule.add(request("b", prompt=17))
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
    seq = schedule.add(request("a", prompt=3, **params))
    expected: list[Event] = [TokenEvent("a", seq, token, 0)]
    if end:
        expected.append(FinishedEvent("a", seq, *end))
    assert step(schedule, token) == expected
    assert schedule.has_work is (end is None)


def test_abort_ends_the_waiting_and_the_running() -> None:
    schedule = scheduler(max_num_seqs=1)
    running, waiting = schedule.add(request("a", prompt=3)), schedule.add(request("b", prompt=3))
    step(schedule)
    assert schedule.abort("b") == [FinishedEvent("b", waiting, "abort")]
    assert schedule.abort("nobody") == []
    assert schedule.abort("a") == [FinishedEvent("a", running, "abort")]
    assert (schedule.has_work, schedule.most_pages) == (False, 0)


def test_text_can_stop_a_sequence() -> None:
    schedule = scheduler()
    seq = schedule.add(request("a", prompt=3))
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
    first, second = schedule.add(request("a", 3)), schedule.add(request("b", 3))
    plan = schedule.plan()
    schedule.abort("a")
    events = schedule.commit(plan, {first: 7, second: 8}, {first: 0})
    assert [event.seq for event in events] == [second]
    assert schedule.sequence(second).tokens[-1] == 8
