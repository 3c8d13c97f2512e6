"""How long sampling a step takes: 64 rows of 49,152 logits on one thread, beside a plain read of the same bytes.

The logits are noise with some 30 tokens far above it; --flat leaves those out, so that top_p keeps thousands. Of each
way of sampling the best and the median of several rounds, all ways in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from tokenvm.engine.sampling.rows import RowState
from tokenvm.engine.sampling.sampler import sample
from tokenvm.schedule.sampling_params import SamplingParams

WAYS = {
    "greedy": SamplingParams(temperature=0),
    "greedy, penalties": SamplingParams(temperature=0, repetition_penalty=1.1, frequency_penalty=0.1),
    "greedy, logprobs=5": SamplingParams(temperature=0, logprobs=5),
    "temperature 1": SamplingParams(),
    "top_k 50": SamplingParams(top_k=50),
    "top_p 0.95": SamplingParams(top_p=0.95),
    "top_k 50, top_p 0.95": SamplingParams(top_k=50, top_p=0.95, temperature=0.7),
    "min_p 0.05": SamplingParams(min_p=0.05),
}
PROMPT = tuple(range(0, 40_000, 20))


def main() -> None:
    """Print a line for each way of sampling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--flat", action="store_true")
    given = parser.parse_args()
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (given.rows, given.vocab)).astype(np.float32)
    if not given.flat:
        logits[:, random.integers(0, given.vocab, 30)] += random.uniform(6, 14, 30).astype(np.float32)
    works: dict[str, Callable[[], object]] = {"read (maxima)": lambda: logits.max(axis=1)}
    for name, params in WAYS.items():
        states = [RowState(params, at, vocab_size=given.vocab, prompt=PROMPT) for at in range(given.rows)]
        works[name] = lambda states=states: sample(logits, states)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(given.rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    for name, taken in seconds.items():
        best, middle = min(taken) * 1e3, statistics.median(taken) * 1e3
        each = best * 1e3 / given.rows
        sys.stdout.write(f"{name:24} best {best:7.2f} ms  median {middle:7.2f} ms  {each:6.1f} us a row\n")


if __name__ == "__main__":
    main()
