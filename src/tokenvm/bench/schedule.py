"""How long it takes to decide what a step computes, with many sequences running and thousands waiting."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from rich.console import Console

from tokenvm.bench.figures import percentile, spread
from tokenvm.bench.report import Grid, Report
from tokenvm.schedule.limits import Limits
from tokenvm.schedule.prefixes import Match
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.schedule.scheduler import Scheduler
from tokenvm.vocab import Answer, SeqId, UnitId

BLOCK_TOKENS: Final = 16
PREFIX_TOKENS: Final = 64
"""Every prompt begins with the same tokens, whose pages are there."""

PROMPT_TOKENS: Final = 256
MOST_TOKENS: Final = 512
SHORTEST: Final = 32
"""Answers have from 32 to 512 tokens, all lengths alike."""


class _OnePrefix:
    """The pages of the common beginning, found of every prompt."""

    def match(self, seq: SeqId) -> Match:
        return Match(Answer.HIT, tuple(map(UnitId, range(PREFIX_TOKENS // BLOCK_TOKENS))))


@dataclass
class Load:
    """A scheduler whose device is full of about `running` sequences, while `waiting` others wait."""

    running: int
    waiting: int
    scheduler: Scheduler = field(init=False)
    plan_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    _ends: dict[SeqId, int] = field(default_factory=dict)  # sequence → the tokens it will answer
    _chance: Random = field(default_factory=lambda: Random(0))
    _asked: int = 0

    def __post_init__(self) -> None:
        mean_tokens = PROMPT_TOKENS - PREFIX_TOKENS + (SHORTEST + MOST_TOKENS) // 4
        limits = Limits(
            max_num_seqs=2 * self.running,
            max_tokens_per_forward=2 * self.running + 512,
            max_model_len=PROMPT_TOKENS + MOST_TOKENS,
            block_tokens=BLOCK_TOKENS,
            device_slots=self.running * mean_tokens // BLOCK_TOKENS * 11 // 10,
            held_pages=self.running * 10 * (PROMPT_TOKENS + MOST_TOKENS) // BLOCK_TOKENS,
            vocab_size=1 << 16,
        )
        self.scheduler = Scheduler(limits, _OnePrefix())

    def step(self) -> None:
        """Fill the queue up, time a plan, and commit it."""
        while len(self._ends) < self.running + self.waiting:
            self._ask()
        gc.disable()  # its pauses depend on what else the process keeps
        began_s = time.perf_counter()
        plan = self.scheduler.plan()
        self.plan_s.append(time.perf_counter() - began_s)
        gc.enable()
        self.counts.append(len(self.scheduler.running))
        self.scheduler.commit(plan, dict.fromkeys(plan.sampled, 1), {})
        for seq in plan.sampled:
            if self.scheduler.sequence(seq).new_tokens >= self._ends[seq]:
                self.scheduler.stop(seq)
                del self._ends[seq]

    def _ask(self) -> None:
        self._asked += 1
        own = [self._chance.randrange(1 << 16) for _ in range(PROMPT_TOKENS - PREFIX_TOKENS)]
        params = SamplingParams(max_tokens=MOST_TOKENS, ignore_eos=True)
        (seq,) = self.scheduler.add(Request(str(self._asked), (*range(PREFIX_TOKENS), *own), params))
        self._ends[seq] = self._chance.randrange(SHORTEST, MOST_TOKENS)


def measure(sizes: Sequence[int], waiting: int, steps: int, console: Console) -> Report:
    """Time `steps` plans at each number of running sequences, once the device is full and answers have ended."""
    rows = []
    for running in sizes:
        console.print(f"about {running} sequences", style="dim")
        load = Load(running, waiting)
        for _ in range(MOST_TOKENS + 64):
            load.step()
        load.plan_s.clear()
        load.counts.clear()
        for _ in range(steps):
            load.step()
        rows.append(_row(load))
    figures = {"bench": "schedule", "waiting": waiting, "steps": steps, "rows": rows}
    note = (
        f"{waiting} more sequences wait. A plan decides who is admitted and paused, and every span of a step. "
        "Garbage is collected between plans."
    )
    return Report("schedule", figures, [_grid(rows)], [note])


def _row(load: Load) -> dict[str, Any]:
    times_ms = [seconds * 1e3 for seconds in load.plan_s]
    return {
        "asked": load.running,
        "running": spread(load.counts),
        "mean_ms": sum(times_ms) / len(times_ms),
        "median_ms": spread(times_ms).mid,
        "p95_ms": percentile(times_ms, 0.95),
        "most_ms": max(times_ms),
    }


def _grid(rows: list[dict[str, Any]]) -> Grid:
    cells = [
        [
            f"{row['asked']}",
            f"{row['running'].mid:.0f}",
            f"{row['mean_ms']:.2f}",
            f"{row['median_ms']:.2f}",
            f"{row['p95_ms']:.2f}",
            f"{row['most_ms']:.2f}",
        ]
        for row in rows
    ]
    return Grid(("sized for", "running", "mean ms", "median ms", "95 % ms", "most ms"), cells)
