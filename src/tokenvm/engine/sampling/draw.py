"""One draw from one row: what min_p, top_k and top_p leave of it, at a place that only seed and counters decide."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokenvm.engine.sampling.choice import Row, at_least, descending, largest_values
from tokenvm.schedule.sampling_params import SamplingParams

Weights = NDArray[np.float64]

_BLOCK: Final = 512
"""Weights of a whole row are summed by so many."""

_FEW: Final = 100
"""So many of the best tokens usually reach top_p."""

_MASK: Final = (1 << 64) - 1
_MULTIPLIERS: Final = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL: Final = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def uniform(seed: int, completion: int, index: int) -> float:
    """Return the number in [0, 1) for the `index`-th token of a request's `completion`-th sequence.

    Philox4x64-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011), keyed by the seed: a function
    of its counter, so nothing is carried from step to step.
    """
    a, b, c, d = 1, 0, completion, index
    key0, key1 = seed & _MASK, 0
    for _ in range(10):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (right >> 64) ^ b ^ key0, right & _MASK, (left >> 64) ^ d ^ key1, left & _MASK
        key0, key1 = (key0 + _WEYL[0]) & _MASK, (key1 + _WEYL[1]) & _MASK
    return (a >> 11) * 2.0**-53


def draw(row: Row, params: SamplingParams, place: float) -> int:
    """Draw from softmax(row / temperature), cut by min_p, then top_k, then top_p, at `place` in [0, 1).

    A cut row is walked from its best token down, equal ones by ascending id; a whole one by ascending id. The best
    token is never cut off. Only values are sorted: which token a value belongs to is asked once.
    """
    peak = float(row.max())
    if not math.isfinite(peak):
        return int(row.argmax())
    if not (params.min_p > 0.0 or params.top_p < 1.0 or 0 < params.top_k < row.size):
        return _from_whole(_weights(row, peak, params.temperature), place)
    values, total = _kept(row, peak, params)
    edges = np.cumsum(_exact(values, peak, params.temperature))
    if params.top_p < 1.0:
        within = np.searchsorted(edges, params.top_p * (total or edges[-1]), side="left")
        edges = edges[: int(within) + 1]
    return _token(row, values, _reach(edges, place * float(edges[-1])))


def _kept(row: Row, peak: float, params: SamplingParams) -> tuple[Row, float]:
    """Return the logits that min_p and top_k leave, descending, and the weight that top_p is a share of (0: theirs).

    Where top_p alone cuts, only as many are returned as surely reach it.
    """
    if params.min_p > 0.0:
        values = _likely(row, peak, params)
        return (values[: params.top_k] if params.top_k > 0 else values), 0.0
    if 0 < params.top_k < row.size:
        return largest_values(row, params.top_k), 0.0
    return _nucleus(row, peak, params)


def _likely(row: Row, peak: float, params: SamplingParams) -> Row:
    """Return the logits of tokens at least `min_p` times as likely as the best one, descending."""
    edge = np.float32(peak + params.temperature * math.log(params.min_p))
    values = at_least(row, np.nextafter(edge, np.float32(-np.inf)))
    return values[_exact(values, peak, params.temperature) >= params.min_p]


def _nucleus(row: Row, peak: float, params: SamplingParams) -> tuple[Row, float]:
    """Return enough of the largest logits to reach `top_p`, descending, and the weight of all tokens.

    Tokens below (1 - top_p) / vocab cannot be needed, since all of them together weigh less than what may be left
    out: so never more than the others are sorted.
    """
    weights = _weights(row, peak, params.temperature)
    total = float(_sums(weights).sum())
    few = largest_values(row, _FEW)
    if _exact(few, peak, params.temperature).sum() >= params.top_p * total:
        return few, total
    least = 0.5 * (1.0 - params.top_p) / row.size * total
    return descending(row[np.flatnonzero(weights >= np.float32(least))]), total


def _token(row: Row, values: Row, at: int) -> int:
    """Return the token behind the `at`-th of the largest values, equal ones by ascending id."""
    value = values[at]
    same = np.flatnonzero(row == value)
    return int(same[at - int(np.count_nonzero(values > value))])


def _from_whole(weights: Row, place: float) -> int:
    """Invert the cumulative distribution of all tokens: first which block, then which token in it."""
    edges = np.cumsum(_sums(weights))
    target = place * float(edges[-1])
    block = _reach(edges, target)
    before = float(edges[block - 1]) if block else 0.0
    first = block * _BLOCK
    inner = np.cumsum(weights[first : first + _BLOCK], dtype=np.float64)
    return first + _reach(inner, target - before)


def _reach(edges: Weights, target: float) -> int:
    """Return the first place whose edge lies above `target`; where rounding leaves none, the last with any weight."""
    at = int(np.searchsorted(edges, target, side="right"))
    return at if at < edges.size else int(np.searchsorted(edges, edges[-1], side="left"))


def _weights(row: Row, peak: float, temperature: float) -> Row:
    """Return exp((row - peak) / temperature) in fp32: as good as the logits are, and half the time of fp64."""
    weights = row - np.float32(peak)
    weights *= np.float32(1.0 / temperature)
    np.exp(weights, out=weights)
    return weights


def _sums(weights: Row) -> Weights:
    """Return the weights of all blocks."""
    whole = weights.size - weights.size % _BLOCK
    sums = weights[:whole].reshape(-1, _BLOCK).sum(axis=1)
    return np.append(sums, weights[whole:].sum()).astype(np.float64)


def _exact(values: Row, peak: float, temperature: float) -> Weights:
    """Return exp((values - peak) / temperature) in fp64."""
    return np.exp((values.astype(np.float64) - peak) / temperature)
