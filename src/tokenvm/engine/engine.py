"""The engine: one step after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenvm.clock import Clock
from tokenvm.engine.account import Account
from tokenvm.engine.rescue import Rescue
from tokenvm.engine.runner import Runner
from tokenvm.engine.sampling.choice import Choice
from tokenvm.engine.sampling.sampler import Sampler
from tokenvm.engine.sampling.scoring import LogitRows, Scores, score
from tokenvm.engine.startup import StartupPlan
from tokenvm.errors import RequestError, StorageError, TokenVMError
from tokenvm.kvcache import KVCache
from tokenvm.schedule.plan import Event, FinishedEvent, Plan
from tokenvm.schedule.request import Request
from tokenvm.schedule.scheduler import Scheduler
from tokenvm.vocab import SeqId


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step brought: events in order, the choice behind each token, and the pages it read.

    `scores` tell of prompt tokens. `begins` are the sequences that ran for the first time, each with the tokens of its
    prompt whose KV was there already; the step began at `began_s` of the engine's clock. `failures`: requests that a
    tier's failure ended, each with its error.
    """

    events: tuple[Event, ...]
    choices: dict[SeqId, Choice]
    tokens: int
    resident_pages: int = 0
    streamed_pages: int = 0
    scores: dict[SeqId, Scores] = field(default_factory=dict)
    begins: dict[SeqId, int] = field(default_factory=dict)
    began_s: float = 0.0
    failures: dict[str, TokenVMError] = field(default_factory=dict)


class Engine:
    """Owns the scheduler, the KV of its sequences and the model. One thread calls it.

    `plan` is what was planned for its memory.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        kvcache: KVCache,
        runner: Runner,
        clock: Clock,
        plan: StartupPlan,
        sampler: Sampler,
    ) -> None:
        self.plan = plan
        self.scheduler = scheduler
        self.kvcache = kvcache
        self.runner = runner
        self.account = Account(kvcache.vm, clock)
        self._clock = clock
        self._sampler = sampler
        self._closed = False
        self._followed = True  # what was planned last was carried out
        self._rescue = Rescue(scheduler, kvcache, clock)
        self._begun: dict[SeqId, int] = {}  # of those that began and were not told of: tokens that were found

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work

    def add(self, request: Request) -> tuple[SeqId, ...]:
        """Take a request; return its sequences in order.

        Raises:
            RequestError: it can never run. StorageError: its pages have no space on disk, and it cannot do without.
                Nothing is kept then.
        """
        self._refuse_closed()
        self._settle()
        seqs = self.scheduler.add(request)
        try:
            self._sampler.expect(request)
            self._reserve(request.request_id)
            for seq in seqs:
                self.kvcache.announce(seq, request.prompt_token_ids, request.cache_salt)
        except BaseException:
            self.abort(request.request_id)
            raise
        return seqs

    def step(self) -> StepResult:
        """Compute one step for every sequence that runs: plan, stage, run, sample, commit.

        Raises:
            StorageError: there is no room for a page, and nobody who could give way. Nothing of this step was
                committed; it may be tried again, or the requests be aborted.
        """
        self._refuse_closed()
        self._settle()
        if failures := self._rescue.hopeless():
            return self._fail(failures)
        try:
            return self._step()
        except StorageError as error:
            return self._fail(self._rescue.give_way(error))

    def _step(self) -> StepResult:
        began_s = self._clock.now_s()
        self._rescue.fit()
        plan = self._plan()
        fresh = [seq for seq in plan.begins if not self._rescue.begun_before(seq)]
        self._begun |= {seq: self.kvcache.cached_tokens(seq) for seq in fresh}
        if not plan.spans:
            return StepResult((), {}, 0)
        with self.kvcache.stage(plan) as staged:
            logits = self.runner.run(plan, self._tokens(plan), staged)
            choices = self._sample(plan, logits, staged.lost)
            scores = self._score(plan, logits, staged.lost)
        begins, self._begun = self._begun, {}
        events = self._commit(plan, choices, staged.lost)
        self.account.step(plan, staged, began_s, self._clock.now_s())
        self.kvcache.rates = self.account.rates
        pages = (staged.resident_pages, staged.streamed_pages)
        return StepResult(events, choices, plan.tokens, *pages, scores, begins, began_s)

    def abort(self, request_id: str) -> list[Event]:
        """End a request now; its pages are freed."""
        self._settle()
        events = self.scheduler.abort(request_id)
        self._release(events)
        return events

    def stop(self, seq: SeqId) -> FinishedEvent:
        """End one sequence because its text said so."""
        self._settle()
        event = self.scheduler.stop(seq)
        self._release([event])
        return event

    def stats(self) -> dict[str, Any]:
        """Return counters of tiers, moves and overlap as plain values."""
        return {
            **self.account.as_dict(),
            "kept": self.kvcache.kept,
            "prefix_cache": self.kvcache.prefix_stats.as_dict(),
            "policy": self.kvcache.policy_stats,
            "requests": self.scheduler.counts,
            "set_back_sequences": self._rescue.set_back_sequences,
        }

    def close(self) -> None:
        """Stop all copies and give the memory back; idempotent. Nothing can be asked of the engine any more."""
        if not self._closed:
            self._closed = True
            self._sampler.close()
            self.kvcache.close()

    def _plan(self) -> Plan:
        """Decide what runs; let sequences begin, rest and come back; set those that share pages side by side."""
        self._followed = False
        plan = self.scheduler.plan()
        try:
            self.kvcache.follow(plan)
        except StorageError:
            self._followed = True  # it is tried again when staged
            raise
        self._followed = True
        return self.kvcache.gather(plan)

    def _settle(self) -> None:
        """Undo what an interrupt left half done: whatever was decided and not carried out, everybody begins again."""
        if not self._followed:
            self._rescue.restart()
            self._followed = True

    def _reserve(self, request_id: str) -> None:
        """Make sure of space for all who may run; where there is less, for as many as there is."""
        try:
            self.kvcache.reserve(self.scheduler.most_pages)
        except StorageError:
            self._rescue.fit()
            if not self.kvcache.vm.watch.mends or not self.scheduler.fits(request_id):
                raise

    def _fail(self, failures: dict[str, TokenVMError]) -> StepResult:
        """End these requests."""
        events = [event for request_id in failures for event in self.abort(request_id)]
        return StepResult(tuple(events), {}, 0, failures=failures)

    def _tokens(self, plan: Plan) -> list[int]:
        return [t for s in plan.spans for t in self.scheduler.sequence(s.seq).tokens[s.start : s.end]]

    def _sample(self, plan: Plan, logits: torch.Tensor, lost: dict[SeqId, int]) -> dict[SeqId, Choice]:
        """Choose a token for each sampled sequence; one whose pages were damaged gets none."""
        places = zip(plan.sampled, LogitRows.of(plan).sampled, strict=True)
        kept = {seq: at for seq, at in places if seq not in lost}
        rows = logits.numpy()
        if len(kept) < len(rows):
            rows = rows[list(kept.values())]
        choices = self._sampler.sample(rows, [self.scheduler.sequence(seq) for seq in kept])
        return dict(zip(kept, choices, strict=True))

    def _score(self, plan: Plan, logits: torch.Tensor, lost: dict[SeqId, int]) -> dict[SeqId, Scores]:
        """Tell how likely prompts were whose spans score, damaged ones left out."""
        scores = {}
        for span, at in LogitRows.of(plan).scored:
            if span.seq not in lost:
                request = self.scheduler.sequence(span.seq).request
                rows = logits[at : at + span.count].numpy()
                wanted = request.params.prompt_logprobs
                scores[span.seq] = score(rows, span.start, request.prompt_token_ids, wanted)
        return scores

    def _commit(self, plan: Plan, choices: dict[SeqId, Choice], lost: dict[SeqId, int]) -> tuple[Event, ...]:
        """Enter the step's outcome everywhere; a sequence with a damaged page falls back to before that page."""
        for seq, valid in lost.items():
            lost[seq] = self.kvcache.truncate(seq, valid)
        self._rescue.stepped(lost, choices.keys() - lost.keys())
        for span in plan.spans:
            if span.seq not in lost:
                self.kvcache.commit(span.seq, span.count, self.scheduler.sequence(span.seq).tokens)
        events = self.scheduler.commit(plan, {seq: choice.token for seq, choice in choices.items()}, lost)
        events += self._end_broken(choices)
        self._release(events)
        if plan.spills:
            self.kvcache.write_behind()
        self.kvcache.vm.keeping.tend()
        return tuple(events)

    def _end_broken(self, choices: dict[SeqId, Choice]) -> list[Event]:
        """Abort requests whose grammar turned out too large to be followed to its end."""
        names = {
            self.scheduler.sequence(seq).request.request_id
            for seq in self._sampler.broken(choices)
            if seq in self.scheduler
        }
        return [event for name in sorted(names) for event in self.scheduler.abort(name)]

    def _release(self, events: Sequence[Event]) -> None:
        self._sampler.forget(event.seq for event in events if isinstance(event, FinishedEvent))
        for event in events:
            if isinstance(event, FinishedEvent):
                self._rescue.forget(event.seq)
                self._begun.pop(event.seq, None)
                (self.kvcache.release if event.seq in self.kvcache else self.kvcache.forget)(event.seq)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RequestError("this engine is closed: make another LLM")
