"""How much copying ran beside compute, against a count of moments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvm.metrics import overlap, union

INTERVALS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 6)).map(lambda t: (t[0], t[0] + t[1])), max_size=8
)


def moments(intervals: list[tuple[int, int]]) -> set[int]:
    return {moment for begin, end in intervals for moment in range(begin, end)}


@given(INTERVALS, INTERVALS)
def test_overlap_counts_moments(copies: list[tuple[int, int]], computes: list[tuple[int, int]]) -> None:
    measured = overlap(np.array(copies, np.float64), np.array(computes, np.float64))
    assert measured.copy_s == len(moments(copies))
    assert measured.compute_s == len(moments(computes))
    assert measured.both_s == len(moments(copies) & moments(computes))


@given(INTERVALS)
def test_union_is_disjoint_and_ascending(intervals: list[tuple[int, int]]) -> None:
    merged = union(np.array(intervals, np.float64))
    assert moments([(int(a), int(b)) for a, b in merged]) == moments(intervals)
    assert (np.diff(merged.ravel()) > 0).all()


def test_ratios() -> None:
    measured = overlap(np.array([[0.0, 4.0]]), np.array([[1.0, 3.0]]))
    assert measured.overlap_ratio == pytest.approx(0.5)
    assert measured.hidden_ratio == pytest.approx(1.0)


def test_without_copies_nothing_is_hidden() -> None:
    measured = overlap(np.empty((0, 2)), np.array([[1.0, 3.0]]))
    assert (measured.overlap_ratio, measured.hidden_ratio, measured.compute_s) == (0.0, 0.0, 2.0)
