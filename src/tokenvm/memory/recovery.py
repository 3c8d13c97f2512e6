"""What of an index may be believed: pages that are ours, young enough, whole in their files, and reachable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tokenvm.memory.page_format import KEY_BYTES, NO_KEY, Records


@dataclass(slots=True)
class Losses:
    """Pages that were there and are not taken over, by reason, and records that could not be read."""

    foreign_pages: int = 0
    expired_pages: int = 0
    missing_pages: int = 0
    orphan_pages: int = 0
    beyond_pages: int = 0
    damaged_records: int = 0


@dataclass(frozen=True, slots=True)
class Recovered:
    """Records of pages that stay, each after the page before it; `idle_order` are places in them, first to go first.

    `keys` and `parents` are those of the records as bytes, zeros for no parent.
    """

    pages: Records
    keys: Sequence[bytes]
    parents: Sequence[bytes]
    idle_order: Sequence[int]
    losses: Losses = field(default_factory=Losses)


def reachable(pages: Records, losses: Losses) -> Recovered:
    """Order pages of different keys, heads first; those behind a page that is gone are orphans, and counted.

    Takes time linear in the pages, but for one sort.
    """
    keys, parents = names_in(pages["key"]), names_in(pages["parent"])
    order, depth = _heads_first(keys, parents)
    losses.orphan_pages = len(pages) - len(order)
    newest = _newest_behind(order, keys, parents, pages["number"].tolist())
    idle = sorted(range(len(order)), key=lambda place: (newest[order[place]], -depth[order[place]]))
    return Recovered(pages[order], [keys[at] for at in order], [parents[at] for at in order], idle, losses)


def recover(pages: Records, fingerprint: bytes, oldest_s: float, has_slab: NDArray[np.bool_]) -> Recovered:
    """Choose the pages that stay. `has_slab` says of each page whether its slab is whole; keys are different."""
    losses = Losses()
    ours = (pages["fingerprint"] == np.frombuffer(fingerprint, np.uint8)).all(axis=1)
    losses.foreign_pages = int((~ours).sum())
    young = pages["written_s"] >= max(0.0, oldest_s)
    losses.expired_pages = int((ours & ~young).sum())
    losses.missing_pages = int((ours & young & ~has_slab).sum())
    return reachable(pages[ours & young & has_slab], losses)


def names_in(column: NDArray[np.uint8]) -> list[bytes]:
    """Return the keys in a column [n, 16] as bytes."""
    whole = np.ascontiguousarray(column).tobytes()
    return [whole[at : at + KEY_BYTES] for at in range(0, len(whole), KEY_BYTES)]


def _heads_first(keys: Sequence[bytes], parents: Sequence[bytes]) -> tuple[list[int], dict[int, int]]:
    """Return the pages that can be reached from a first one, heads before tails, and how far each is from it."""
    below: dict[bytes, list[int]] = {}
    for at, parent in enumerate(parents):
        below.setdefault(parent, []).append(at)
    order = list(below.get(NO_KEY, ()))
    depth = dict.fromkeys(order, 0)
    for at in order:  # grows while it is walked; keys differ, so nothing comes twice
        for child in below.get(keys[at], ()):
            if child not in depth:
                depth[child] = depth[at] + 1
                order.append(child)
    return order, depth


def _newest_behind(
    order: Sequence[int], keys: Sequence[bytes], parents: Sequence[bytes], numbers: Sequence[int]
) -> dict[int, int]:
    """Return of each page the highest number of it and all that go on from it."""
    newest = {at: numbers[at] for at in order}
    place = {keys[at]: at for at in order}
    for at in reversed(order):
        above = place.get(parents[at], at)
        newest[above] = max(newest[above], newest[at])
    return newest
