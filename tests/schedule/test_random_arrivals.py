"""A simple stepper serves random arrivals under random limits; the laws of scheduling hold at every step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import hypothesis.strategies as st
from hypothesis import Phase, given, settings

from tokenvm.schedule.limits import Limits
from tokenvm.schedule.plan import FinishedEvent, Plan, TokenEvent
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.schedule.scheduler import Scheduler
from tokenvm.vocab import SeqId

VOCAB = 50
EOS = 49


def token_of(seq: SeqId, index: int) -> int:
    """The token a sequence gets at an index, whenever and however often it is computed."""
    return Random(seq * 1000 + index).randrange(VOCAB)


def pages_of(tokens: int, limits: Limits) -> int:
    return -(-tokens // limits.block_tokens)


@dataclass
class Stepper:
    """Runs a scheduler without a model, and keeps its own account."""

    limits: Limits
    scheduler: Scheduler = field(init=False)
    tokens: dict[SeqId, list[int]] = field(default_factory=dict)
    computed: Counter[SeqId] = field(default_factory=Counter)
    wanted: dict[SeqId, int] = field(default_factory=dict)
    produced: dict[SeqId, list[int]] = field(default_factory=dict)
    reasons: dict[SeqId, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits)

    def add(self, prompt: int, max_tokens: int) -> SeqId:
        params = SamplingParams(max_tokens=max_tokens)
        (seq,) = self.scheduler.add(Request(f"r{len(self.tokens)}", tuple(range(prompt)), params))
        self.tokens[seq] = list(range(prompt))
        self.wanted[seq] = min(max_tokens, self.limits.max_model_len - prompt)
        self.produced[seq] = []
        return seq

    def promised(self, seq: SeqId) -> int:
        """Pages a sequence may come to own; the last token needs none."""
        prompt = len(self.tokens[seq]) - len(self.produced[seq])
        return pages_of(prompt + self.wanted[seq] - 1, self.limits)

    def slots(self, seq: SeqId) -> int:
        return self.promised(seq) + self.limits.open_slots - 1

    def step(self, losing: Random | None = None) -> Plan:
        waiting_before = self.scheduler.has_work
        plan = self.scheduler.plan()
        assert bool(plan.spans) == waiting_before, "whoever has work gets a span"
        self.check_admission()
        self.check_plan(plan)
        self.commit(plan, losing)
        return plan

    def check_admission(self) -> None:
        limits, running = self.limits, self.scheduler.running
        most = min(limits.max_num_seqs, (limits.device_slots - 1) // limits.open_slots)
        assert len(running) <= most
        held = sum(map(self.promised, running))
        assert held <= limits.most_pages(len(running))
        unfinished = [seq for seq in self.tokens if seq not in self.reasons]
        assert list(running) == unfinished[: len(running)], "first come, first served"
        if len(running) < len(unfinished):
            crowded = len(running) == most
            wanted = held + self.promised(unfinished[len(running)])
            assert crowded or wanted > limits.most_pages(len(running) + 1)
        largest = sorted(map(self.promised, unfinished))[-limits.max_num_seqs :]
        assert self.scheduler.most_pages == min(sum(largest), limits.held_pages)

    def check_plan(self, plan: Plan) -> None:
        limits, running = self.limits, self.scheduler.running
        assert plan.tokens <= limits.max_tokens_per_forward
        assert len({span.seq for span in plan.spans}) == len(plan.spans)
        assert plan.spills == (sum(map(self.slots, running)) > limits.device_slots)
        decoding = []
        for span in plan.spans:
            known = len(self.tokens[span.seq])
            assert span.seq in running
            assert span.start == self.computed[span.seq] < span.end <= known
            assert span.samples == (span.end == known)
            decoding.append(bool(self.produced[span.seq]) and self.computed[span.seq] == known - 1)
        assert decoding == sorted(decoding, reverse=True), "decodes before prefills"
        created = sum(pages_of(span.end, limits) - pages_of(span.start, limits) for span in plan.spans)
        ends = self.computed | {span.seq: span.end for span in plan.spans}
        open_before = {seq for seq in running if self.computed[seq] % limits.block_tokens}
        open_after = {seq for seq in running if ends.get(seq, 0) % limits.block_tokens}
        written = len(open_before) + created + (limits.open_slots - 1) * len(open_before | open_after)
        assert written <= limits.device_slots, "all that is written to lies on the device"
        if limits.open_slots > 1:
            for span in plan.spans:
                pages = pages_of(span.end, limits) - span.start // limits.block_tokens
                whole = not (span.start % limits.block_tokens and span.end % limits.block_tokens)
                assert pages == 1 or whole, "a step never has two open pages of one sequence"

    def commit(self, plan: Plan, losing: Random | None) -> None:
        lost = {}
        if losing and losing.random() < 0.3:
            victim = losing.choice(self.scheduler.running)
            full_pages = self.computed[victim] // self.limits.block_tokens
            lost[victim] = losing.randint(0, full_pages) * self.limits.block_tokens
        sampled = {seq: token_of(seq, len(self.produced[seq])) for seq in plan.sampled if seq not in lost}
        events = self.scheduler.commit(plan, sampled, lost)
        for span in plan.spans:
            self.computed[span.seq] = span.end
        for seq, valid in lost.items():
            before = next((span.start for span in plan.spans if span.seq == seq), self.computed[seq])
            self.computed[seq] = min(before, valid)
        for event in events:
            assert event.seq in sampled
            if isinstance(event, TokenEvent):
                assert event.index == len(self.produced[event.seq])
                self.produced[event.seq].append(event.token)
                self.tokens[event.seq].append(event.token)
            elif isinstance(event, FinishedEvent):
                self.reasons[event.seq] = event.reason
        assert {event.seq for event in events} == set(sampled)
        for seq in self.scheduler.running:
            assert self.scheduler.sequence(seq).tokens == self.tokens[seq]
            assert self.scheduler.sequence(seq).computed == self.computed[seq]

    def check_outcome(self) -> None:
        """Every sequence got exactly its own tokens, each once, whatever happened on the way."""
        for seq, wanted in self.wanted.items():
            own = [token_of(seq, index) for index in range(wanted)]
            ends = own.index(EOS) + 1 if EOS in own else wanted
            assert self.produced[seq] == own[:ends]
            assert self.reasons[seq] == ("stop" if EOS in own else "length")


ARRIVALS = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 30), st.integers(1, 12)), max_size=8)


@st.composite
def legal_limits(draw: st.DrawFn) -> Limits:
    block, open_slots = draw(st.sampled_from([1, 4, 16])), draw(st.sampled_from([1, 1, 3]))
    fits_any_request = pages_of(41, Limits(1, 1, 41, block, 2, 1, VOCAB))
    return Limits(
        max_num_seqs=draw(st.integers(1, 5)),
        max_tokens_per_forward=draw(st.sampled_from([1, 2, 3, 7, 16, 64])),
        max_model_len=41,
        block_tokens=block,
        device_slots=draw(st.integers(open_slots + 1, 6 + 2 * open_slots)),
        open_slots=open_slots,
        held_pages=fits_any_request + open_slots - 1 + draw(st.sampled_from([0, 1, 5, 50])),
        lower_pages=draw(st.sampled_from([0, fits_any_request])),
        vocab_size=VOCAB,
        eos_token_ids=frozenset({EOS}),
        lookahead=False,
    )


examples = settings(max_examples=80, derandomize=True, deadline=None, database=None, phases=[Phase.generate])


@examples
@given(legal_limits(), ARRIVALS)
def test_everyone_is_served_in_order(limits: Limits, arrivals: list[tuple[int, int, int]]) -> None:
    stepper, steps = Stepper(limits), 0
    for pause, prompt, max_tokens in arrivals:
        for _ in range(pause):
            if stepper.scheduler.has_work:
                stepper.step()
                steps += 1
        stepper.add(prompt, max_tokens)
    while stepper.scheduler.has_work:
        stepper.step()
        steps += 1
    stepper.check_outcome()
    assert steps <= sum(prompt + most for _, prompt, most in arrivals), "a token of progress every step"
    assert stepper.scheduler.most_pages == 0


@examples
@given(legal_limits(), ARRIVALS, st.integers(0, 2**32))
def test_lost_pages_change_nothing_but_time(
    limits: Limits, arrivals: list[tuple[int, int, int]], seed: int
) -> None:
    stepper, losing = Stepper(limits), Random(seed)
    for _, prompt, max_tokens in arrivals:
        stepper.add(prompt, max_tokens)
        stepper.step(losing)
    for _ in range(300):
        if stepper.scheduler.has_work:
            stepper.step(losing)
    while stepper.scheduler.has_work:
        stepper.step()
    stepper.check_outcome()
