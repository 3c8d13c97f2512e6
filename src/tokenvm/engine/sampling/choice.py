"""A token that was chosen, or that stood in a prompt, and what the model thought of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokenvm.schedule.sampling_params import ALL

Row = NDArray[np.float32]
"""The logits of one token, fp32 [vocab]."""

Ids = NDArray[np.int64]

_COLUMNS: Final = 512
"""Of how many stretches of a row the maxima are looked at in order to bound the largest values."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One token.

    `logprob` is that of the model's own distribution, before everything that sampling parameters change; its `rank` is
    1 for the most likely. `best` holds the most likely tokens with their log-probabilities, best first, as many as the
    request asked for. Where none were asked for: nan, 0 and ().
    """

    token: int
    logprob: float = float("nan")
    rank: int = 0
    best: tuple[tuple[int, float], ...] = ()


def describe(row: Row, token: int, wanted: int | None) -> Choice:
    """Tell what a row says about a token and about its `wanted` best tokens; None asks for nothing."""
    if wanted is None:
        return Choice(token)
    peak = float(row.max())
    weights = row.astype(np.float64)
    weights -= peak
    np.exp(weights, out=weights)
    total = peak + float(np.log(weights.sum()))
    best = largest(row, row.size if wanted == ALL else wanted)
    values = row[best].astype(np.float64) - total
    rank = 1 + int(np.count_nonzero(row > row[token]))
    ranked = tuple(zip(best.tolist(), values.tolist(), strict=True))
    return Choice(token, float(row[token]) - total, rank, ranked)


def largest(row: Row, count: int) -> Ids:
    """Return the indices of the `count` largest, or of all if there are fewer: best first, equal ones ascending."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    ids = np.flatnonzero(row >= _bound(row, count)) if count < row.size else np.arange(row.size)
    return ids[np.argsort(-row[ids], kind="stable")][:count]


def largest_values(row: Row, count: int) -> Row:
    """Return the values of the `count` > 0 largest, or of all if there are fewer, descending."""
    return at_least(row, _bound(row, count))[:count] if count < row.size else descending(row)


def at_least(row: Row, bound: np.float32) -> Row:
    """Return the values that are not below `bound`, descending."""
    return descending(row[np.flatnonzero(row >= bound)])  # a third of the time of a mask


def descending(values: Row) -> Row:
    """Return them sorted, the largest first."""
    return np.sort(values)[::-1]


def _bound(row: Row, count: int) -> np.float32:
    """Return a value that at least `count` elements reach, and few more.

    The `count` largest of the maxima of disjoint stretches are `count` elements; of few and long stretches, nearly
    the largest ones. One pass over the row instead of a selection.
    """
    whole = row.size - row.size % _COLUMNS
    values = row
    if 4 * count <= _COLUMNS <= whole // 4:
        values = row[:whole].reshape(-1, _COLUMNS).max(axis=0)
    return np.float32(np.partition(values, values.size - count)[values.size - count])
