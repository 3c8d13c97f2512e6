"""Which sequences of a step read the same pages: leading pages in common, found from the page tables alone.

A page is shared only where all pages before it are, so the sequences of a step form a tree over their leading pages
(a trie). A run is one edge of it: consecutive pages, and the sequences that read them. The rows of a run attend its
pages together, as in Hydragen (arXiv:2402.05099), on every level of the tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import indexOf, ne

from tokenvm.vocab import UnitId


@dataclass(frozen=True, slots=True)
class Run:
    """Pages [first_page, first_page + page_count), which the sequences [begin, end) of a step have in common."""

    begin: int
    end: int
    first_page: int
    page_count: int


def order_of(pages: Sequence[list[UnitId]]) -> list[int]:
    """Return an order of the sequences in which those that share pages stand side by side, on every level.

    `pages` are those of each sequence in position order. The order is a function of them alone, so it stays as it is
    from step to step; where no two share anything, it is the order given. O(total pages) and a sort.
    """
    heads = [listed[0] for listed in pages if listed]
    if len(set(heads)) == len(heads):
        return list(range(len(pages)))
    return sorted(range(len(pages)), key=lambda at: pages[at])


def runs_of(pages: Sequence[list[UnitId]]) -> list[Run]:
    """Cut the pages of all sequences into runs; sequences that stand side by side share what they have in common.

    Every page of every sequence is in exactly one run. Level by level of the tree: the runs of one sequence come in
    position order, and between two of them stand runs of others. O(total pages), and sequences times levels.
    """
    common = [_common(one, other) for one, other in pairwise(pages)]
    runs: list[Run] = []
    level = [(0, len(pages), 0)] if pages else []
    while level:
        below: list[tuple[int, int, int]] = []
        for begin, end, first in level:
            last = min(common[begin : end - 1], default=len(pages[begin]))
            if last > first:
                runs.append(Run(begin, end, first, last - first))
            if end - begin > 1:
                below += ((*between, last) for between in _split(common, begin, end, last))
        level = below
    return runs


def runs_alone(pages: Sequence[list[UnitId]]) -> list[Run]:
    """Return one run for each sequence, as if nobody shared anything."""
    return [Run(at, at + 1, 0, len(own)) for at, own in enumerate(pages)]


def _split(common: list[int], begin: int, end: int, last: int) -> Iterator[tuple[int, int]]:
    """Cut [begin, end) where two neighbours have no more than `last` pages in common."""
    for at in range(begin + 1, end):
        if common[at - 1] == last:
            yield begin, at
            begin = at
    yield begin, end


def _common(one: list[UnitId], other: list[UnitId]) -> int:
    """Return how many leading pages two sequences have in common."""
    try:
        return indexOf(map(ne, one, other), True)
    except ValueError:
        return min(len(one), len(other))
