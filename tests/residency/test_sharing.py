"""Shared leading pages: the tree over them, against what brute force finds."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvm.residency.sharing import Run, order_of, runs_of
from tokenvm.vocab import UnitId

Tables = list[list[UnitId]]


def units(*numbers: int) -> list[UnitId]:
    return [UnitId(number) for number in numbers]


@st.composite
def forked(draw: st.DrawFn) -> Tables:
    """Sequences that were forked at random pages from one another, in random order."""
    fresh = iter(range(1, 1000))
    tables: Tables = []
    for _ in range(draw(st.integers(0, 9))):
        parent = draw(st.sampled_from([[], *tables]))
        kept = draw(st.integers(0, len(parent)))
        grown = draw(st.integers(0 if kept else 1, 4))
        tables.append(parent[:kept] + [UnitId(next(fresh)) for _ in range(grown)])
    return draw(st.permutations(tables))


def common(one: list[UnitId], other: list[UnitId]) -> int:
    return max(n for n in range(min(len(one), len(other)) + 1) if one[:n] == other[:n])


def covered(tables: Tables) -> list[list[tuple[int, UnitId]]]:
    """What each sequence attends, in the order of the runs."""
    seen: list[list[tuple[int, UnitId]]] = [[] for _ in tables]
    for run in runs_of(tables):
        for at in range(run.begin, run.end):
            pages = range(run.first_page, run.first_page + run.page_count)
            seen[at] += [(page, tables[run.begin][page]) for page in pages]
    return seen


@given(forked())
def test_every_page_of_every_sequence_is_covered_once_in_order(tables: Tables) -> None:
    assert covered(tables) == [list(enumerate(table)) for table in tables]


@given(forked())
def test_in_their_order_every_page_is_read_once(tables: Tables) -> None:
    tables = [tables[at] for at in order_of(tables)]
    read = Counter(
        tables[run.begin][page]
        for run in runs_of(tables)
        for page in range(run.first_page, run.first_page + run.page_count)
    )
    assert all(count == 1 for count in read.values())
    assert set(read) == {unit for table in tables for unit in table}


@given(forked())
def test_sharers_stand_side_by_side_on_every_level(tables: Tables) -> None:
    order = order_of(tables)
    assert sorted(order) == list(range(len(tables)))
    tables = [tables[at] for at in order]
    for one, other in combinations(range(len(tables)), 2):
        between = min(common(tables[at], tables[at + 1]) for at in range(one, other))
        assert between == common(tables[one], tables[other])


@given(forked(), st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_the_order_given(tables: Tables, chance: object) -> None:
    shuffled = tables.copy()
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    heads = [table[0] for table in tables if table]
    if len(set(heads)) < len(heads):
        assert [tables[at] for at in order_of(tables)] == [shuffled[at] for at in order_of(shuffled)]
    else:
        assert order_of(shuffled) == list(range(len(tables)))


@given(forked())
def test_runs_are_as_wide_and_as_long_as_they_can_be(tables: Tables) -> None:
    """Two runs of the same sequences would be one, and a run's next page is not shared by all of them."""
    runs = runs_of(tables)
    assert len({(run.begin, run.end) for run in runs}) == len(runs)
    for run in runs:
        end = run.first_page + run.page_count
        following = [table[end : end + 1] for table in tables[run.begin : run.end]]
        assert len(following) == 1 or [] in following or len({tuple(page) for page in following}) > 1


def test_levels() -> None:
    tables = [units(1, 2, 3), units(7), units(1, 2, 4, 5), units(1, 9)]
    assert order_of(tables) == [0, 2, 3, 1]
    assert runs_of([tables[at] for at in order_of(tables)]) == [
        Run(0, 3, 0, 1),
        Run(3, 4, 0, 1),
        Run(0, 2, 1, 1),
        Run(2, 3, 1, 1),
        Run(0, 1, 2, 1),
        Run(1, 2, 2, 2),
    ]


@pytest.mark.parametrize("tables", [[], [units(3)], [units(3), units(2, 5), units(1)]])
def test_nothing_shared_keeps_the_order_and_one_run_each(tables: Tables) -> None:
    assert order_of(tables) == list(range(len(tables)))
    assert runs_of(tables) == [Run(at, at + 1, 0, len(table)) for at, table in enumerate(tables)]


def test_a_long_chain_of_forks() -> None:
    """Each sequence shares one page more with the next than the one before: as many levels as sequences."""
    length = 400
    tables = [units(*range(kept), 1000 + kept) for kept in range(length)]
    tables = [tables[at] for at in order_of(tables)]
    runs = runs_of(tables)
    assert sum(run.page_count for run in runs) == 2 * length - 1
    assert covered(tables) == [list(enumerate(table)) for table in tables]
