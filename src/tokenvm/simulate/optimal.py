"""What could have been found by one who knows the future."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from tokenvm.simulate.trace import Visit
from tokenvm.vocab import PageKey

_NEVER = 1 << 60


def optimal(visits: Sequence[Visit], pages: int) -> list[int]:
    """Return the leading pages found by each request if those go that are asked for last, of one request the tails.

    Belady (1966) for single pages; that leading runs count makes it a bound in practice, not by proof.
    """
    following = _next_requests(visits)
    here: dict[PageKey, tuple[int, int]] = {}
    order: list[tuple[int, int, PageKey]] = []
    found = []
    for visit, nexts in zip(visits, following, strict=True):
        found.append(next((at for at, key in enumerate(visit.keys) if key not in here), len(visit.keys)))
        for at, (key, again) in enumerate(zip(visit.keys, nexts, strict=True)):
            here.pop(key, None)
            if again != _NEVER:
                here[key] = (-again, -at)
                heappush(order, (-again, -at, key))
        while len(here) > pages:
            again, at, key = heappop(order)
            if here.get(key) == (again, at):
                del here[key]
    return found


def _next_requests(visits: Sequence[Visit]) -> list[list[int]]:
    """Return for each page of each request which request asks for it next."""
    following: list[list[int]] = []
    known: dict[PageKey, int] = {}
    for index in reversed(range(len(visits))):
        keys = visits[index].keys
        following.append([known.get(key, _NEVER) for key in keys])
        known.update(dict.fromkeys(keys, index))
    return following[::-1]
