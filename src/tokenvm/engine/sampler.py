"""Logits to tokens, one row at a time.

Every choice depends on its own row, the request's parameters, its seed and the index of the token: never on the batch,
a thread count or how often a step had to be repeated. Arithmetic is float64 numpy on one thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenvm.schedule.sampling_params import SamplingParams

Row = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choice:
    """One sampled token.

    `logprob` is that of the model's own distribution, before temperature and cuts. `best` holds the most likely tokens
    with their log-probabilities, best first, as many as the request asked for.
    """

    token: int
    logprob: float
    rank: int
    best: tuple[tuple[int, float], ...]


def choose(logits: NDArray[np.float32], params: SamplingParams, seed: int, index: int) -> Choice:
    """Sample the `index`-th output token from `logits` [vocab]; the draw is a function of (seed, index) alone."""
    row = logits.astype(np.float64)
    if params.temperature == 0.0:
        token = int(row.argmax())
    else:
        token = _draw(_cut(row / params.temperature, params), _uniform(seed, index))
    return _describe(row, token, params.logprobs)


def _describe(row: Row, token: int, wanted: int | None) -> Choice:
    if wanted is None:
        return Choice(token, float("nan"), 0, ())
    peak = row.max()
    total = peak + np.log(np.exp(row - peak).sum())
    logprob = float(row[token] - total)
    best = _largest(row, wanted)
    rank = 1 + int((row > row[token]).sum())
    return Choice(token, logprob, rank, tuple((int(i), float(row[i] - total)) for i in best))


def _largest(row: Row, count: int) -> NDArray[np.int64]:
    """Return the indices of the `count` largest, best first, equal values by ascending index."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    count = min(count, row.size)
    edge = np.partition(row, row.size - count)[row.size - count]
    candidates = np.flatnonzero(row >= edge)
    return candidates[np.argsort(-row[candidates], kind="stable")][:count]


def _cut(row: Row, params: SamplingParams) -> Row:
    """Set what top_k, then top_p, exclude to -inf; the most likely token always stays."""
    if 0 < params.top_k < row.size:
        kept = _largest(row, params.top_k)
        limited = np.full_like(row, -np.inf)
        limited[kept] = row[kept]
        row = limited
    if params.top_p < 1.0:
        row = _nucleus(row, params.top_p)
    return row


def _nucleus(row: Row, top_p: float) -> Row:
    """Keep the smallest set of most likely tokens whose probability reaches `top_p`.

    Tokens below (1 - top_p) / vocab cannot be part of it, since all of them together weigh less than what may be left
    out; only the others are sorted.
    """
    weights = np.exp(row - row.max())
    weights /= weights.sum()
    candidates = np.flatnonzero(weights >= (1.0 - top_p) / row.size)
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    before = np.cumsum(weights[order]) - weights[order]
    kept = order[before < top_p]
    limited = np.full_like(row, -np.inf)
    limited[kept[:1]] = row[kept[:1]]
    limited[kept] = row[kept]
    return limited


def _draw(row: Row, uniform: float) -> int:
    """Invert the cumulative distribution of softmax(row) at `uniform` in [0, 1)."""
    weights = np.exp(row - row.max())
    edges = np.cumsum(weights)
    token = int(np.searchsorted(edges, uniform * edges[-1], side="right"))
    return min(token, int(np.flatnonzero(weights)[-1]))


def _uniform(seed: int, index: int) -> float:
    """Draw from a counter-based generator (Philox): nothing to carry from step to step."""
    generator = np.random.Generator(np.random.Philox(key=seed % (1 << 64), counter=[0, 0, 0, index]))
    return float(generator.random())
