"""Random arrivals with shared prompts, priorities and crowded devices: the laws of looking ahead, at every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import hypothesis.strategies as st
from fixtures_schedule import EOS, VOCAB
from hypothesis import Phase, given, settings

from tokenvm.schedule.lengths import WARM
from tokenvm.schedule.limits import Limits
from tokenvm.schedule.plan import FinishedEvent, Plan
from tokenvm.schedule.prefixes import Match
from tokenvm.schedule.request import Request, Sequence, Status
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.schedule.scheduler import Scheduler
from tokenvm.vocab import Answer, SeqId, UnitId


@dataclass
class World:
    """Pages as they would really lie, and who has which: a prefix is found where a sequence that lives computed it."""

    limits: Limits
    finds: bool
    scheduler: Scheduler = field(init=False)
    pages: dict[SeqId, list[int]] = field(default_factory=dict)
    paused: dict[SeqId, int] = field(default_factory=dict)  # how many had ended then
    arrived: dict[SeqId, int] = field(default_factory=dict)  # priorities
    ran: set[SeqId] = field(default_factory=set)
    ended: int = 0
    again: int = 0  # tokens that had to be computed again
    next_page: int = 0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits, self)

    def match(self, seq: SeqId) -> Match:
        if not self.finds:
            return Match(Answer.HIT)
        sequence, block = self.scheduler.sequence(seq), self.limits.block_tokens
        most = (sequence.prompt_tokens - 1) // block
        best: list[int] = []
        soon = 0
        for other, pages in self.pages.items():
            known = self.scheduler.sequence(other)
            alike = 0
            while alike < most and self.page_of(known, alike) == self.page_of(sequence, alike):
                alike += 1
            there = min(alike, known.computed // block)
            best = max(best, pages[:there], key=len)
            if other in self.scheduler.running:
                soon = max(soon, min(alike, len(known.tokens) // block))
        answer = Answer.IN_FLIGHT if soon > len(best) else Answer.HIT
        return Match(answer, tuple(map(UnitId, best)))

    def page_of(self, sequence: Sequence, index: int) -> list[int]:
        block = self.limits.block_tokens
        page = sequence.tokens[index * block : (index + 1) * block]
        return page if len(page) == block else [-1, sequence.seq]

    def add(
        self, name: str, prompt: tuple[int, ...], max_tokens: int, n: int, priority: int, kind: str
    ) -> None:
        params = SamplingParams(n=n, max_tokens=max_tokens, prompt_logprobs=0 if kind == "scored" else None)
        seqs = self.scheduler.add(Request(name, prompt, params, priority=priority, request_class=kind))
        assert [self.scheduler.sequence(seq).index for seq in seqs] == list(range(n))
        self.arrived |= dict.fromkeys(seqs, priority)

    def step(self, chance: Random) -> Plan:
        before = set(self.scheduler.running)
        units = {
            seq: () if self.scheduler.sequence(seq).scored else self.match(seq).units for seq in self.arrived
        }
        plan = self.scheduler.plan()
        self.check_turn(plan, before)
        for seq in plan.begins:
            assert seq not in self.pages
            self.pages[seq] = list(units[seq])
        self.check_spans(plan)
        self.check_held()
        tokens = {seq: EOS if self.ended < WARM else chance.randrange(VOCAB) for seq in plan.sampled}
        lost = self.lose(chance) if chance.random() < 0.05 else {}
        for event in self.scheduler.commit(plan, tokens, lost):
            if isinstance(event, FinishedEvent):
                self.end(event.seq)
        return plan

    def lose(self, chance: Random) -> dict[SeqId, int]:
        """A page is damaged; all who have it fall back to before it."""
        pages = sorted({page for pages in self.pages.values() for page in pages})
        if not pages:
            return {}
        gone, lost = chance.choice(pages), {}
        for seq, own in self.pages.items():
            if gone in own:
                computed = self.scheduler.sequence(seq).computed
                lost[seq] = min(computed, own.index(gone) * self.limits.block_tokens)
                self.again += len(self.scheduler.sequence(seq).tokens) - lost[seq]
                del own[self.limits.pages(lost[seq]) :]
        return lost

    def end(self, seq: SeqId) -> None:
        self.pages.pop(seq, None)
        self.paused.pop(seq, None)
        del self.arrived[seq]
        self.ended += 1

    def status(self, seq: SeqId) -> Status:
        return self.scheduler.sequence(seq).status

    def check_turn(self, plan: Plan, before: set[SeqId]) -> None:
        running = self.scheduler.running
        for seq in plan.pauses:
            assert seq in before
            assert seq in self.pages, "only who began is paused"
            assert self.status(seq) is Status.PAUSED
            self.paused[seq] = self.ended
        for seq in plan.resumes:
            alone = not set(before) - set(plan.pauses)
            stuck = all(span.seq in plan.resumes for span in plan.spans)
            assert self.paused.pop(seq) < self.ended or alone or stuck, "a pause is paid for by an end"
        for seq in set(running) - before - set(plan.resumes):
            rank = self.arrived[seq], seq
            waiting = [other for other in self.arrived if other not in running and other not in plan.pauses]
            same = [other for other in waiting if self.arrived[other] == rank[0]]
            assert all(other > seq for other in same), "nobody overtakes within a priority"
            returning = [other for other in self.paused if other not in plan.pauses]
            assert all(self.arrived[other] > rank[0] for other in returning), "the paused come first"

    def check_spans(self, plan: Plan) -> None:
        running = self.scheduler.running
        if not plan.spans:
            waits = [self.match(seq).answer for seq in running if seq not in self.pages]
            assert len(waits) == len(running) > 0 or not self.arrived
            assert set(waits) <= {Answer.IN_FLIGHT}, "somebody could have run"
        decoding = [seq for seq in running if self.scheduler.sequence(seq).decoding]
        most = min(len(decoding), self.limits.max_tokens_per_forward)
        if self.limits.device_slots > len(running) * (self.limits.open_slots + 1):
            assert [span.count for span in plan.spans[:most]] == [1] * most, "decoding never stalls"
        assert plan.tokens <= self.limits.max_tokens_per_forward
        rows = sum(span.count if span.scores else span.samples for span in plan.spans)
        assert rows <= self.limits.max_num_seqs
        for span in plan.spans:
            sequence = self.scheduler.sequence(span.seq)
            assert span.seq in running
            assert span.start == sequence.computed < span.end <= len(sequence.tokens)
            for _ in range(self.limits.pages(span.end) - len(self.pages[span.seq])):
                self.pages[span.seq].append(self.next_page)
                self.next_page += 1

    def check_held(self) -> None:
        limits, running = self.limits, self.scheduler.running
        begun = [self.scheduler.sequence(seq) for seq in running if seq in self.pages]
        everyone = [*running, *self.paused]
        promised = sum(self.scheduler.sequence(seq).most_pages for seq in everyone)
        assert promised + len(self.paused) * limits.beside <= limits.held_pages
        assert len(everyone) <= limits.max_num_seqs
        held = len({page for one in begun for page in self.pages[one.seq]}) + limits.beside * len(begun)
        if len(begun) > 1 and not any(one.oversize for one in begun) and any(one.decoding for one in begun):
            assert held <= limits.device_slots, "those that run are resident"


PREFIXES = [tuple(range(10, 40)), tuple(range(10, 26)) + tuple(range(60, 80)), (), ()]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    block, open_slots = draw(st.sampled_from([1, 4, 8])), draw(st.sampled_from([1, 1, 2]))
    pages = -(-60 // block)
    limits = Limits(
        max_num_seqs=draw(st.integers(1, 8)),
        max_tokens_per_forward=draw(st.sampled_from([2, 7, 32, 100])),
        max_model_len=60,
        block_tokens=block,
        device_slots=draw(
            st.sampled_from([1 + open_slots, pages // 2 + 2, pages + 2, pages + 8, 2 * pages, 2 * pages])
        ),
        held_pages=pages * draw(st.sampled_from([1, 4, 9])) + 12,
        vocab_size=VOCAB,
        eos_token_ids=frozenset({EOS}),
        open_slots=open_slots,
    )
    return World(limits, draw(st.booleans()))


ASKED = st.tuples(
    st.integers(0, 5),
    st.sampled_from(PREFIXES),
    st.integers(1, 10),
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([0, 0, 1]),
    st.sampled_from(["", "scored", *["short"] * 4]),
)


@settings(
    max_examples=150, derandomize=True, deadline=None, database=None, phases=[Phase.generate, Phase.shrink]
)
@given(worlds(), st.lists(ASKED, min_size=1, max_size=12), st.integers(0, 2**32))
def test_everyone_is_served_and_those_that_run_are_resident(
    world: World,
    asked: list[tuple[int, tuple[int, ...], int, int, int, int, str]],
    seed: int,
) -> None:
    """The first of a class answer with one token, so that those who follow outlive what is expected of them."""
    chance, steps, most = Random(seed), 0, 0
    for number in range(WARM if seed % 4 else 0):
        world.add(f"early{number}", (number,), 20, 1, 0, "short")
    while world.scheduler.has_work:
        world.step(chance)
    for number, (pause, prefix, more, max_tokens, n, priority, kind) in enumerate(asked):
        own = tuple(chance.randrange(VOCAB) for _ in range(more))
        world.add(f"r{number}", prefix + own, max_tokens, n, priority, kind)
        most += n * (len(prefix) + more + max_tokens)
        for _ in range(pause):
            world.step(chance)
            steps += 1
        if chance.random() < 0.1:
            for event in world.scheduler.abort(f"r{chance.randrange(number + 1)}"):
                assert isinstance(event, FinishedEvent)
                world.end(event.seq)
    while world.scheduler.has_work:
        world.step(chance)
        steps += 1
        assert steps <= most + world.again + 100, "no progress"
    assert not world.arrived
    assert world.scheduler.most_pages == 0
