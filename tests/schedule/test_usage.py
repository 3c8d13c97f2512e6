"""The closed form against a stepper that does what is assumed, one step after another."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import given, settings

from tokenvm.schedule.usage import Forecast, Row


@dataclass
class Life:
    """One row on its way."""

    row: Row
    computed: int
    pending: int
    left: int

    def pages(self, block: int, name: int) -> set[object]:
        whole = -(-self.computed // block)
        return {self.row.path[at] if at < self.row.depth else (name, at) for at in range(whole)}


def stepped(
    rows: list[Row], block: int, beside: int, rate: int, starts: list[int] | None = None
) -> tuple[list[int], int]:
    """Slots taken in each step, and the step after that in which the last row ends; rows come in steps `starts`."""
    waiting = list(zip(rows, starts or [0] * len(rows), strict=True))
    living: dict[int, Life] = {}
    taken: list[int] = []
    end = 0
    while len(living) < len(rows) or any(life.left for life in living.values()):
        now = len(taken)
        for name, (row, start) in enumerate(waiting):
            if start == now:
                living[name] = Life(row, row.computed, row.pending, row.remaining)
        budget = rate
        for life in living.values():
            if life.left and life.row.decoding:
                life.computed += 1
            elif life.left:
                step = min(budget, life.pending)
                budget -= step
                decodes = life.pending == 0
                life.computed += 1 if decodes else step
                life.pending -= step
        alive = {name: life for name, life in living.items() if life.left}
        paged = {name: life for name, life in alive.items() if not life.row.fixed}
        pages = set().union(*(life.pages(block, name) for name, life in paged.items()))
        taken.append(len(pages) + beside * len(paged) + sum(life.row.fixed for life in alive.values()))
        for life in alive.values():
            if life.row.decoding or life.pending == 0:
                life.left -= 1
        if rows and len(rows) - 1 in alive:
            end = len(taken)
    return taken, end


PATHS = [(1, 2, 3, 4), (1, 2, 5, 6), (7, 8, 9)]


@st.composite
def rows_of(draw: st.DrawFn, block: int) -> Row:
    decoding = draw(st.booleans())
    path = draw(st.sampled_from(PATHS))
    fixed = draw(st.sampled_from([0, 0, 0, 0, 3]))
    depth = 0 if fixed else draw(st.integers(0, len(path)))
    return Row(
        computed=depth * block + draw(st.integers(0, 3 * block)),
        pending=1 if decoding else draw(st.integers(1, 40)),
        remaining=draw(st.integers(1, 60)),
        decoding=decoding,
        fixed=fixed,
        path=path,
        depth=depth,
    )


examples = settings(max_examples=200, derandomize=True, deadline=None, database=None)


@examples
@given(st.data(), st.sampled_from([1, 2, 3, 16]), st.integers(0, 2), st.integers(1, 50))
def test_the_peak_is_that_of_the_stepper(data: st.DataObject, block: int, beside: int, rate: int) -> None:
    rows = data.draw(st.lists(rows_of(block), max_size=8))
    assert Forecast(rows, block, beside, rate).peak == max(stepped(rows, block, beside, rate)[0], default=0)


@examples
@given(st.data(), st.sampled_from([1, 2, 3, 16]), st.integers(0, 2), st.integers(1, 50), st.integers(0, 60))
def test_likely_rows_are_admitted_exactly_when_they_fit(
    data: st.DataObject, block: int, beside: int, rate: int, limit: int
) -> None:
    running = data.draw(st.lists(rows_of(block), max_size=5))
    likely = data.draw(st.lists(rows_of(block), min_size=1, max_size=4))
    forecast = Forecast(running, block, beside, rate, likely)
    for row in likely:
        taken, end = stepped([*running, row], block, beside, rate)
        fits = max(taken[:end]) <= limit
        assert forecast.admit(row, limit) is fits
        if not fits:
            break
        running.append(row)
        assert forecast.peak == max(taken)


@examples
@given(st.data(), st.sampled_from([1, 2, 3, 16]), st.integers(0, 2), st.integers(1, 50), st.integers(0, 60))
def test_who_comes_later_is_never_admitted_too_soon(
    data: st.DataObject, block: int, beside: int, rate: int, limit: int
) -> None:
    rows = data.draw(st.lists(rows_of(block), max_size=5))
    forecast = Forecast(rows, block, beside, rate)
    starts, now = [0] * len(rows), 0
    for row in data.draw(st.lists(rows_of(block), min_size=1, max_size=5)):
        now += data.draw(st.integers(0, 8))
        taken, end = stepped([*rows, row], block, beside, rate, [*starts, now])
        if forecast.admit(row, limit, now):
            assert max(taken[now:end]) <= limit
            rows.append(row)
            starts.append(now)


def test_nobody_takes_nothing() -> None:
    assert Forecast([], 16, 0, 1).peak == 0


def test_a_short_one_fits_beside_a_long_one_that_has_not_grown_yet() -> None:
    """64 pages in the end, but only 2 while the short one is there."""
    long, short = Row(16, 1, 1000, True), Row(0, 16, 4, False)
    forecast = Forecast([long], 16, 0, 100, [short])
    assert forecast.peak == 64
    assert forecast.admit(short, limit=4)
    assert forecast.peak == 64
    assert not Forecast([long], 16, 0, 100, [short]).admit(short, limit=3)


def test_a_shared_prompt_counts_until_its_last_holder_ends() -> None:
    path = tuple(range(10))
    early, late = Row(160, 1, 2, True, 0, path, 10), Row(160, 1, 40, True, 0, path, 10)
    assert Forecast([early, late], 16, 0, 1).peak == 13
    assert Forecast([late], 16, 0, 1).peak == 13
    forecast = Forecast([early], 16, 0, 1, [late])
    assert forecast.admit(late, 13)
    assert not Forecast([early], 16, 0, 1, [late]).admit(late, 12)


def test_thousands_of_steps_cost_no_more() -> None:
    rows = [Row(1000 * at, 1, 10**6 + at, True) for at in range(10)]
    assert Forecast(rows, 16, 0, 1).peak == sum(-(-(1000 * at + 10**6) // 16) for at in range(10))
