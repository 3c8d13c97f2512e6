"""What is asked of every engine. All greedy, of random token ids, exactly as many tokens as are asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Prompts = list[list[int]]

SEQUENCES = 64
DECODED = 64
LONG_PROMPT = 8000

REAL_PROMPTS = (
    "January is the first month of the year. February is the second month of the year. March is the",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,",
    "red apple, red apple, red apple, red apple, red apple,",
    "a, b, c, d, e, f, g, h, i, j, k,",
    "10, 20, 30, 40, 50, 60,",
)
"""Texts that SmolLM2 goes on with decisively: each of the tokens compared is ahead of the next best by a logit or more,
so engines agree on them however they round."""

CHECKED_TOKENS = 8


class Engine(Protocol):
    """Anything that answers jobs."""

    def seconds(self, prompts: Prompts, n_out: int) -> float:
        """Complete the prompts and return how long that took."""
        ...


@dataclass(frozen=True)
class Measure:
    """A figure of a workload. `rate`: the larger the better, else the smaller."""

    title: str
    unit: str
    rate: bool

    def advantage(self, ours: float, theirs: float) -> float:
        """Return how many times as fast we are."""
        return ours / theirs if self.rate else theirs / ours


MEASURES: Mapping[str, Measure] = {
    "decode": Measure("one request, 512 in: decoding", "tok/s", True),
    "long_ttft": Measure("8,000 in: first token", "s", False),
    "long_step": Measure("8,000 in: each token after it", "ms", False),
    "batch": Measure("64 requests, 128 in, 64 out", "tok/s", True),
    "shared": Measure("64 requests, 1,024 shared + 32 in, 32 out", "tok/s", True),
}


def random_prompt(rng: random.Random, tokens: int) -> list[int]:
    """Return ids from the middle of the vocabulary, where no special token is."""
    return [rng.randrange(1000, 40000) for _ in range(tokens)]


def decode(engine: Engine, rng: random.Random) -> dict[str, float]:
    """Time one request of 512 tokens; the reading is timed by itself and taken off."""
    first = engine.seconds([random_prompt(rng, 512)], 1)
    whole = engine.seconds([random_prompt(rng, 512)], DECODED + 1)
    return {"decode": DECODED / (whole - first)}


def long(engine: Engine, rng: random.Random) -> dict[str, float]:
    """Time one request of 8,000 tokens: its first token, and each after it."""
    first = engine.seconds([random_prompt(rng, LONG_PROMPT)], 1)
    whole = engine.seconds([random_prompt(rng, LONG_PROMPT)], DECODED + 1)
    return {"long_ttft": first, "long_step": 1000 * (whole - first) / DECODED}


def batch(engine: Engine, rng: random.Random) -> dict[str, float]:
    """Time 64 requests of 128 tokens, 64 tokens each."""
    prompts = [random_prompt(rng, 128) for _ in range(SEQUENCES)]
    return {"batch": SEQUENCES * 64 / engine.seconds(prompts, 64)}


def shared(engine: Engine, rng: random.Random) -> dict[str, float]:
    """Time 64 requests that begin with the same 1,024 tokens, which nobody has seen before."""
    prefix = random_prompt(rng, 1024)
    prompts = [prefix + random_prompt(rng, 32) for _ in range(SEQUENCES)]
    return {"shared": SEQUENCES * 32 / engine.seconds(prompts, 32)}


WORKLOADS: Mapping[str, Callable[[Engine, random.Random], dict[str, float]]] = {
    "decode": decode,
    "long": long,
    "batch": batch,
    "shared": shared,
}


def best_threads(trial: Mapping[int, Mapping[str, float]], measure: str) -> int:
    """Return the number of threads with the best figure of a trial; of equal ones the smaller."""
    rate = MEASURES[measure].rate
    return min(sorted(trial), key=lambda threads: (-1 if rate else 1) * trial[threads][measure])


def advantages(measure: str, ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return how many times as fast we were in each round."""
    return [MEASURES[measure].advantage(a, b) for a, b in zip(ours, theirs, strict=True)]
