"""What is expected of answers, against the plain mean and deviation of those that were at least as long."""

from __future__ import annotations

import math
import statistics

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tokenvm.schedule import lengths
from tokenvm.schedule.lengths import BINS, MARGIN, WARM, ExpectedLengths
from tokenvm.schedule.request import Request, Sequence
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.vocab import SeqId


def sequence(number: int, produced: int = 0, allowed: int = 100, kind: str = "") -> Sequence:
    made = Sequence(
        SeqId(number), Request(f"r{number}", (1, 2), SamplingParams(), request_class=kind), allowed
    )
    made.tokens += [7] * produced
    return made


def answers(expected: ExpectedLengths, produced: list[int], allowed: int = 100, kind: str = "") -> None:
    """Let sequences of these lengths begin and end, one after another."""
    for number, length in enumerate(produced):
        one = sequence(number, length, allowed, kind)
        expected.begin(one)
        expected.end(one, answered=True)
    expected.refresh()


def plain(known: list[int], produced: int, allowed: int) -> int:
    """The same from the lengths themselves, each rounded up to its bin."""
    bins = [math.ceil(length * BINS / allowed) for length in known]
    least = math.ceil((produced + 1) * BINS / allowed)
    longer = [value / BINS for value in bins if value >= least]
    if not longer:
        return allowed - produced
    share = min(1.0, statistics.fmean(longer) + MARGIN * statistics.pstdev(longer))
    return max(1, math.ceil(round(share * allowed, 9)) - produced)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    st.integers(1, 700).flatmap(
        lambda allowed: st.tuples(
            st.just(allowed),
            st.lists(st.integers(1, allowed), min_size=WARM, max_size=40),
            st.integers(0, allowed - 1),
        )
    )
)
def test_expected_is_the_mean_and_a_margin_of_those_that_got_as_far(case: tuple[int, list[int], int]) -> None:
    allowed, known, produced = case
    expected = ExpectedLengths()
    answers(expected, known, allowed)
    remaining = expected.remaining(sequence(1000, produced, allowed))
    assert abs(remaining - plain(known, produced, allowed)) <= 1, "but for the last bit of the mean"
    assert 1 <= remaining <= allowed - produced


def test_nothing_is_believed_before_the_first_sixteen_have_ended() -> None:
    """Short answers end first; as long as a long one of the first sixteen goes on, they do not count."""
    expected = ExpectedLengths()
    long = sequence(1000, 90)
    expected.begin(long)
    answers(expected, [5] * 100)
    assert expected.remaining(sequence(1001)) == 100
    expected.end(long, answered=True)
    expected.refresh()
    assert expected.remaining(sequence(1001)) < 20


def test_who_outlives_all_is_expected_to_go_on_to_the_end() -> None:
    expected = ExpectedLengths()
    answers(expected, [10] * 50)
    assert expected.remaining(sequence(1000, 3)) == 8, "10 of 100 lie in the bin that ends with 10.2"
    assert expected.remaining(sequence(1000, 20)) == 80


def test_classes_do_not_mix() -> None:
    expected = ExpectedLengths()
    answers(expected, [4] * 20, kind="short")
    answers(expected, [80] * 20, kind="long")
    assert expected.remaining(sequence(1000, kind="short")) <= 5
    assert expected.remaining(sequence(1000, kind="long")) >= 80
    assert expected.remaining(sequence(1000, kind="new")) == 100


def test_aborted_ones_do_not_count() -> None:
    expected = ExpectedLengths()
    for number in range(40):
        one = sequence(number, 1)
        expected.begin(one)
        expected.end(one, answered=False)
    expected.end(sequence(41), answered=False)
    expected.refresh()
    assert expected.remaining(sequence(1000)) == 100


def test_old_answers_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "WINDOW", 20)
    monkeypatch.setattr(lengths, "MAX_CLASSES", 2)
    expected = ExpectedLengths()
    answers(expected, [90] * 30)
    answers(expected, [10] * 20)
    assert expected.remaining(sequence(1000)) <= 11
    for kind in "ab":
        answers(expected, [10] * 20, kind=kind)
    assert expected.remaining(sequence(1000)) == 100, "the class nobody began in for longest is gone"
    assert expected.remaining(sequence(1000, kind="a")) <= 11
