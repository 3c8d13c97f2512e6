"""Whether the policy is worth having: what it found beside what LRU would have found, and what anybody could have."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tokenvm.residency.policy.lru import Lru
from tokenvm.residency.policy.shadow import Shadow
from tokenvm.vocab import PageKey

MOST_SEEN: Final = 1 << 18
"""Pages that are known to have been there once; beyond that, those asked for last."""


@dataclass(frozen=True, slots=True)
class HitRates:
    """Shares of the pages that requests asked for, in [0, 1]; only leading pages count as found.

    `bound` is what a cache without limit would have found, so `regret` is at most what the policy lost.
    """

    asked_pages: int
    hit_rate: float
    lru: float
    bound: float

    @property
    def regret(self) -> float:
        """What a cache without limit would have found beyond what was found."""
        return max(0.0, self.bound - self.hit_rate)


class Proof:
    """Counts over all requests since birth. Names alone are kept: a shadow of LRU, and what was ever there."""

    def __init__(self) -> None:
        self._lru: Shadow[PageKey] = Shadow(Lru[PageKey]())
        self._seen: OrderedDict[PageKey, None] = OrderedDict()
        self._asked = self._found = self._found_by_lru = self._found_ever = 0

    def resize(self, pages: int) -> None:
        """Hear how many pages there is room for."""
        self._lru.resize(pages)

    def visit(self, keys: Sequence[PageKey], found: int) -> None:
        """A request asked for these pages, and `found` leading ones were there."""
        self._asked += len(keys)
        self._found += found
        self._found_by_lru += self._lru.leading(keys)
        self._found_ever += self._leading(keys)
        self._lru.ask(keys)
        self._see(*keys)

    def extend(self, key: PageKey, parent: PageKey) -> None:
        """See `Policy.extend`."""
        self._lru.extend(key, parent)
        self._see(key)

    def remove(self, *keys: PageKey) -> None:
        """Pages were lost, or forgotten on purpose: nobody could have kept them."""
        self._lru.remove(*keys)
        for key in keys:
            self._seen.pop(key, None)

    @property
    def rates(self) -> HitRates:
        """What was found so far."""
        asked = max(1, self._asked)
        shares = (found / asked for found in (self._found, self._found_by_lru, self._found_ever))
        return HitRates(self._asked, *shares)

    def _leading(self, keys: Sequence[PageKey]) -> int:
        for found, key in enumerate(keys):
            if key not in self._seen:
                return found
        return len(keys)

    def _see(self, *keys: PageKey) -> None:
        for key in keys:
            self._seen[key] = None
            self._seen.move_to_end(key)
        while len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)


class NoProof(Proof):
    """Counts nothing: for who counts already."""

    def resize(self, pages: int) -> None:
        """Ignore it."""

    def visit(self, keys: Sequence[PageKey], found: int) -> None:
        """Ignore it."""

    def extend(self, key: PageKey, parent: PageKey) -> None:
        """Ignore it."""

    def remove(self, *keys: PageKey) -> None:
        """Ignore them."""
