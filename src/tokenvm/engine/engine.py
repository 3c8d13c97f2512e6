"""The engine: one step after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenvm.clock import Clock
from tokenvm.engine.account import Account
from tokenvm.engine.runner import Runner
from tokenvm.engine.sampling.choice import Choice
from tokenvm.engine.sampling.sampler import Sampler
from tokenvm.engine.sampling.scoring import LogitRows, Scores, score
from tokenvm.engine.startup import StartupPlan
from tokenvm.errors import RequestError, StorageError
from tokenvm.kvcache import KVCache
from tokenvm.schedule.plan import Event, FinishedEvent, Plan
from tokenvm.schedule.request import Request
from tokenvm.schedule.scheduler import Scheduler
from tokenvm.vocab import SeqId

MAX_FALLBACKS = 32
"""How often in a row a sequence may lose a page before it gets its next token: more means that a tier is broken."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step brought: events in order, the choice behind each token, and the pages it read.

    `scores` tell of prompt tokens. `begins` are the sequences that ran for the first time, each with the tokens of its
    prompt whose KV was there already; the step began at `began_s` of the engine's clock.
    """

    events: tuple[Event, ...]
    choices: dict[SeqId, Choice]
    tokens: int
    resident_pages: int = 0
    streamed_pages: int = 0
    scores: dict[SeqId, Scores] = field(default_factory=dict)
    begins: dict[SeqId, int] = field(default_factory=dict)
    began_s: float = 0.0


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
        seed: int = 0,
    ) -> None:
        self.plan = plan
        self.scheduler = scheduler
        self.kvcache = kvcache
        self.runner = runner
        self.account = Account(kvcache.vm)
        self._clock = clock
        self._sampler = Sampler(scheduler.limits.vocab_size, scheduler.limits.eos_token_ids, seed)
        self._closed = False
        self._fallbacks: dict[SeqId, int] = {}  # of each sequence, since its last token
        self._begun: dict[SeqId, int] = {}  # of those that began and were not told of: tokens that were found

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work

    def add(self, request: Request) -> tuple[SeqId, ...]:
        """Take a request; return its sequences in order.

        Raises:
            RequestError: it can never run. StorageError: its pages have no space on disk. Nothing is kept then.
        """
        self._refuse_closed()
        seqs = self.scheduler.add(request)
        try:
            self.kvcache.reserve(self.scheduler.most_pages)
            for seq in seqs:
                self.kvcache.announce(seq, request.prompt_token_ids, request.cache_salt)
        except BaseException:
            self.abort(request.request_id)
            raise
        return seqs

    def step(self) -> StepResult:
        """Compute one step for every sequence that runs: plan, stage, run, sample, commit.

        Raises:
            StorageError: a page cannot be written, or pages come back damaged again and again. Nothing of this step
                was committed; it may be tried again, or the requests be aborted.
        """
        self._refuse_closed()
        self._refuse_broken_tier()
        began_s = self._clock.now_s()
        plan = self._plan()
        self._begun |= {seq: self.kvcache.cached_tokens(seq) for seq in plan.begins}
        if not plan.spans:
            return StepResult((), {}, 0)
        with self.kvcache.stage(plan) as staged:
            logits = self.runner.run(plan, self._tokens(plan), staged)
            choices = self._sample(plan, logits, staged.lost)
            scores = self._score(plan, logits, staged.lost)
        events = self._commit(plan, choices, staged.lost)
        self.account.step(plan, staged, began_s, self._clock.now_s())
        self.kvcache.rates = self.account.rates
        begins, self._begun = self._begun, {}
        pages = (staged.resident_pages, staged.streamed_pages)
        return StepResult(events, choices, plan.tokens, *pages, scores, begins, began_s)

    def abort(self, request_id: str) -> list[Event]:
        """End a request now; its pages are freed."""
        events = self.scheduler.abort(request_id)
        self._release(events)
        return events

    def stop(self, seq: SeqId) -> FinishedEvent:
        """End one sequence because its text said so."""
        event = self.scheduler.stop(seq)
        self._release([event])
        return event

    def stats(self) -> dict[str, Any]:
        """Return counters of tiers, moves and overlap as plain values."""
        return {
            **self.account.as_dict(),
            "prefix_cache": self.kvcache.prefix_stats.as_dict(),
            "policy": self.kvcache.policy_stats,
            "requests": self.scheduler.counts,
        }

    def close(self) -> None:
        """Stop all copies and give the memory back; idempotent. Nothing can be asked of the engine any more."""
        if not self._closed:
            self._closed = True
            self.kvcache.close()

    def _plan(self) -> Plan:
        """Decide what runs; let sequences begin, rest and come back; set those that share pages side by side."""
        plan = self.scheduler.plan()
        self.kvcache.follow(plan)
        return self.kvcache.gather(plan)

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
            self._fallbacks[seq] = self._fallbacks.get(seq, 0) + 1
        for seq in choices.keys() - lost.keys():
            self._fallbacks.pop(seq, None)
        for span in plan.spans:
            if span.seq not in lost:
                self.kvcache.commit(span.seq, span.count, self.scheduler.sequence(span.seq).tokens)
        events = self.scheduler.commit(plan, {seq: choice.token for seq, choice in choices.items()}, lost)
        self._release(events)
        if plan.spills:
            self.kvcache.write_behind()
        return tuple(events)

    def _release(self, events: Sequence[Event]) -> None:
        self._sampler.forget(event.seq for event in events if isinstance(event, FinishedEvent))
        for event in events:
            if isinstance(event, FinishedEvent):
                self._fallbacks.pop(event.seq, None)
                self._begun.pop(event.seq, None)
                (self.kvcache.release if event.seq in self.kvcache else self.kvcache.forget)(event.seq)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RequestError("this engine is closed: make another LLM")

    def _refuse_broken_tier(self) -> None:
        """Raise StorageError if some sequence only ever falls back; it would do so for ever."""
        worst = max(self._fallbacks.values(), default=0)
        if worst >= MAX_FALLBACKS:
            raise StorageError(
                f"pages came back damaged {worst} times in a row: "
                "check the disk below nvme_path, or set nvme_path to another disk"
            )
