"""A scheduler with room for everything, requests for it, and a step without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tokenvm.schedule.limits import Limits
from tokenvm.schedule.plan import Event, Plan
from tokenvm.schedule.prefixes import Match, Prefixes
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.schedule.scheduler import Scheduler
from tokenvm.vocab import Answer, SeqId, UnitId

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


def scheduler(prefixes: Prefixes | None = None, **changed: Any) -> Scheduler:
    return Scheduler(replace(ROOMY, **changed), prefixes)


def request(name: str, prompt: int, max_tokens: int = 10, *, priority: int = 0, **params: Any) -> Request:
    ids = tuple([1] * prompt)
    return Request(name, ids, SamplingParams(max_tokens=max_tokens, **params), priority=priority)


def step(schedule: Scheduler, token: int = 7, lost: Mapping[SeqId, int] | None = None) -> list[Event]:
    """Plan and commit a step in which every sequence samples `token`."""
    plan = schedule.plan()
    return schedule.commit(plan, dict.fromkeys(plan.sampled, token), lost or {})


def counts(plan: Plan) -> dict[int, int]:
    return {span.seq: span.count for span in plan.spans}


@dataclass
class Kept:
    """What is found of each sequence: a number of pages from its first unit on, and whether more comes soon."""

    pages: dict[int, int] = field(default_factory=dict)
    first_units: dict[int, int] = field(default_factory=dict)
    in_flight: set[int] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)

    def match(self, seq: SeqId) -> Match:
        self.asked.append(seq)
        first = self.first_units.get(seq, 0)
        units = tuple(UnitId(first + at) for at in range(self.pages.get(seq, 0)))
        return Match(Answer.IN_FLIGHT if seq in self.in_flight else Answer.HIT, units)
