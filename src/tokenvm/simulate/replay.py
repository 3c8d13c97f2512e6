"""Requests one after another, through the prefix index and a policy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from tokenvm.residency.keys import ROOT
from tokenvm.residency.policy.proof import NoProof
from tokenvm.residency.policy.registry import make_policy
from tokenvm.residency.policy.shadow import anyone
from tokenvm.residency.prefix_index import PrefixIndex
from tokenvm.vocab import PageKey, UnitId


class Kept:
    """Room for so many pages; a request that is served owns its pages, then leaves all of them."""

    def __init__(self, policy: str, pages: int) -> None:
        made = make_policy(policy)
        made.resize(pages)
        self._index = PrefixIndex(made, NoProof())
        self._pages = pages
        self._names = count()

    def serve(self, keys: Sequence[PageKey]) -> int:
        """Find what is there of a prompt, compute the rest, keep what there is room for; return the pages found."""
        index = self._index
        units = index.walk(keys)
        found = len(units)
        index.used(*units)
        index.visit(keys)
        for at in range(found, len(keys)):
            unit = UnitId(next(self._names))
            index.add(keys[at], keys[at - 1] if at else ROOT, unit)
            units.append(unit)
        index.idle(*reversed(units))
        index.reclaim(len(index) - self._pages, anyone)
        return found
