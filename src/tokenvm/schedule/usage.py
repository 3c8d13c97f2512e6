"""Device slots that sequences will take in every step to come, foreseen in closed form.

What is assumed: a step prefills `rate` tokens, first come first; a sequence that decodes gets one token a step, the
first in the step that ends its prefill; each ends after the tokens that it is expected to produce; nobody is added.
Then what is taken in step t follows for each sequence from t alone, it only falls where a sequence ends, and so the
most ever taken is taken in a step in which some sequence ends: only those steps are looked at.

They are swept from the last to the first. A sequence enters when its end is crossed, and turns from decoding to
prefilling when the end of its prefill is. Of n decoding sequences, sequence i holds floor((q_i + t) / B) pages of B
tokens; with q_i = B Q_i + r_i and t = B T + s that is Q_i + T, and one more if r_i >= B - s: sums, and the tail of a
histogram of B remainders. A page that several share is entered with the one that ends last. The cost is O(n) beside
the sort of the ends and a sum of at most B numbers for each, whatever the number of steps.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tokenvm.schedule.common_pages import Path


class Row(NamedTuple):
    """A sequence as it is foreseen: `computed` tokens have their KV, `pending` known ones have not.

    `remaining` tokens will be produced, 1 or more. `fixed`: it takes so many slots whatever it holds; 0: its pages.
    Of its `path`, the first `depth` pages are computed and may be shared. Rows that prefill stand in their order.
    """

    computed: int
    pending: int
    remaining: int
    decoding: bool
    fixed: int = 0
    path: Path = ()
    depth: int = 0


class Forecast:
    """What rows take from now on, and who else fits beside them.

    A page has `block_tokens` tokens; an open one takes `beside` slots more, charged as long as a sequence lives. A step
    prefills `rate` tokens. The ends of `likely` rows, were they added in this order, are looked at as well: with them
    `admit` is exact.
    """

    def __init__(
        self, rows: Sequence[Row], block_tokens: int, beside: int, rate: int, likely: Sequence[Row] = ()
    ) -> None:
        self._block, self._beside, self._rate = block_tokens, beside, rate
        self._backlog = 0
        self._last_use: dict[int, int] = {}  # shared page → the step in which its last holder ends
        sweep = _Sweep(block_tokens, beside, rate, self._last_use)
        for row in rows:
            first, last = self._span(row, 0)
            sweep.add(row, first, last, self._backlog)
        backlog = self._backlog
        extra = {self._span(row, 0)[1] for row in likely}
        self._backlog = backlog
        self._steps, self._taken = sweep.run(extra)

    @property
    def peak(self) -> int:
        """The most slots taken in any step."""
        return max(self._taken, default=0)

    def admit(self, row: Row, limit: int, now: int = 0) -> bool:
        """Add a row that begins `now` steps after those of the forecast; False if it lives to see more than `limit`.

        Never says yes where any step of its life takes more slots. Says no by mistake only to rows that were not
        `likely`: their last step is taken to be as full as the next one that was looked at.
        """
        backlog = self._backlog
        self._backlog = max(backlog, now * self._rate)
        first, last = self._span(row, now)
        begin, end = bisect_left(self._steps, now), bisect_right(self._steps, last)
        steps, taken = self._steps[begin:end], self._taken[begin:end]
        if not steps or steps[-1] != last:
            steps.append(last)
            taken.append(self._taken[end] if end < len(self._taken) else 0)
        taken = [
            before + more for before, more in zip(taken, self._added(row, first, last, steps), strict=True)
        ]
        if max(taken) > limit:
            self._backlog = backlog
            return False
        self._steps[begin:end], self._taken[begin:end] = steps, taken
        for page in row.path[: row.depth]:
            self._last_use[page] = max(last, self._last_use.get(page, last))
        return True

    def _span(self, row: Row, now: int) -> tuple[int, int]:
        """Return in which steps a row that comes next ends its prefill and itself."""
        first = now
        if not row.decoding:
            self._backlog += row.pending
            first = -(-self._backlog // self._rate) - 1
        return first, first + row.remaining - 1

    def _added(self, row: Row, first: int, last: int, steps: list[int]) -> list[int]:
        """Return what a row adds in each of these steps, the pages aside that others hold then as well."""
        if row.fixed:
            return [row.fixed] * len(steps)
        block, known = self._block, row.computed + row.pending
        own = self._beside - row.depth
        uses = sorted(self._last_use.get(page, -1) for page in row.path[: row.depth])
        before = self._backlog - row.pending
        added = []
        for step in steps:
            tokens = known + step - first
            if step < first:
                tokens = row.computed + min(row.pending, max(0, self._rate * (step + 1) - before))
            added.append(own + -(-tokens // block) + bisect_left(uses, step))
        return added


@dataclass(slots=True)
class _End:
    """The sums over all rows that end in one step."""

    wholes: int = 0
    others: int = 0  # slots beside and fixed ones, less shared pages
    remainders: list[int] = field(default_factory=list)
    sharing: list[Row] = field(default_factory=list)


class _Sweep:
    """Goes through the ends of rows from the last to the first, and counts what is taken at each."""

    def __init__(self, block_tokens: int, beside: int, rate: int, last_use: dict[int, int]) -> None:
        self._block, self._beside, self._rate = block_tokens, beside, rate
        self._last_use = last_use
        self._ends: dict[int, _End] = {}
        self._prefills: list[tuple[int, int, Row]] = []  # end of prefill, tokens prefilled by then, row
        self._first: tuple[int, Row] | None = None  # of those that still prefill
        self._remainders = [0] * block_tokens
        self._decoding = 0  # those whose prefill has ended, of the rows entered
        self._wholes = 0  # the sum of their Q
        self._begun_pages = 0  # what those that still prefill hold now
        self._others = 0

    def add(self, row: Row, first: int, last: int, backlog: int) -> None:
        """Take a row that ends its prefill in step `first`, at `backlog` tokens, and itself in step `last`."""
        end = self._ends.get(last)
        if end is None:
            end = self._ends[last] = _End()
        if not row.decoding:
            self._prefills.append((first, backlog, row))
        if row.fixed:
            end.others += row.fixed
            return
        whole, remainder = self._place(row, first)
        end.wholes += whole
        end.remainders.append(remainder)
        end.others += self._beside - row.depth
        if row.depth:
            end.sharing.append(row)

    def run(self, extra: set[int]) -> tuple[list[int], list[int]]:
        """Return the steps in which rows end, and the `extra` ones, ascending, and the slots taken in each."""
        steps = sorted(self._ends.keys() | extra, reverse=True)
        taken = []
        for step in steps:
            if step in self._ends:
                self._enter(self._ends[step], step)
            while self._prefills and self._prefills[-1][0] > step:
                self._to_prefill()
            taken.append(self._taken(step))
        return steps[::-1], taken[::-1]

    def _place(self, row: Row, first: int) -> tuple[int, int]:
        return divmod(row.computed + row.pending - first + self._block - 1, self._block)

    def _enter(self, end: _End, last: int) -> None:
        self._wholes += end.wholes
        self._others += end.others
        self._decoding += len(end.remainders)
        for remainder in end.remainders:
            self._remainders[remainder] += 1
        for row in end.sharing:
            for page in reversed(row.path[: row.depth]):
                if page in self._last_use:
                    break  # and with it all pages before it
                self._last_use[page] = last
                self._others += 1

    def _to_prefill(self) -> None:
        first, done, row = self._prefills.pop()
        self._first = done, row
        if not row.fixed:
            whole, remainder = self._place(row, first)
            self._wholes -= whole
            self._remainders[remainder] -= 1
            self._decoding -= 1
            self._begun_pages += -(-row.computed // self._block)

    def _taken(self, step: int) -> int:
        turns, rest = divmod(step, self._block)
        pages = self._wholes + self._decoding * turns + sum(self._remainders[self._block - rest :])
        return pages + self._begun_pages + self._filling(step) + self._others

    def _filling(self, step: int) -> int:
        """Return the pages that the first of those that still prefill has got by then."""
        if self._first is None:
            return 0
        done, row = self._first
        if row.fixed:
            return 0
        tokens = row.computed + self._rate * (step + 1) - (done - row.pending)
        return -(-tokens // self._block) - -(-row.computed // self._block)
