"""Measures taken from real timestamps, as pure functions and plain values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Overlap:
    """Seconds in which copies and compute ran together, copies ran, compute ran."""

    both_s: float
    copy_s: float
    compute_s: float

    @property
    def overlap_ratio(self) -> float:
        """The share of copy time in which compute ran too; 0 without copies."""
        return self.both_s / self.copy_s if self.copy_s > 0 else 0.0

    @property
    def hidden_ratio(self) -> float:
        """The share of the shorter of the two that ran beside the other; 0 if either never ran."""
        shorter_s = min(self.copy_s, self.compute_s)
        return self.both_s / shorter_s if shorter_s > 0 else 0.0


def union(intervals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Merge (begin, end) pairs, [n, 2] in any order, into disjoint ascending ones; empty ones vanish."""
    kept = np.asarray(intervals, np.float64).reshape(-1, 2)
    kept = kept[kept[:, 1] > kept[:, 0]]
    if len(kept) == 0:
        return kept
    kept = kept[np.argsort(kept[:, 0], kind="stable")]
    reach = np.maximum.accumulate(kept[:, 1])
    first = np.flatnonzero(np.concatenate([[True], kept[1:, 0] > reach[:-1]]))
    last = np.concatenate([first[1:] - 1, [len(kept) - 1]])
    return np.stack([kept[first, 0], reach[last]], axis=1)


def overlap(copy_intervals: NDArray[np.float64], compute_intervals: NDArray[np.float64]) -> Overlap:
    """Measure how much copying ran beside compute. Both are (begin, end) seconds, [n, 2], in any order."""
    copies, computes = union(copy_intervals), union(compute_intervals)
    copy_s, compute_s = _length_s(copies), _length_s(computes)
    either_s = _length_s(union(np.concatenate([copies, computes])))
    return Overlap(max(0.0, copy_s + compute_s - either_s), copy_s, compute_s)


def _length_s(disjoint: NDArray[np.float64]) -> float:
    return float((disjoint[:, 1] - disjoint[:, 0]).sum())
