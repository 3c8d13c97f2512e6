"""The words of TokenVM as types. One word per thing; `docs/vocabulary.md` explains each."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NewType

UnitId = NewType("UnitId", int)
"""What the ledger counts: a KV page, a weight blob, a tensor."""

SlotId = NewType("SlotId", int)
"""A place in a tier that holds one unit."""

SeqId = NewType("SeqId", int)
"""One stream of tokens being produced."""

PageKey = NewType("PageKey", bytes)
"""Content address of a sealed page: equal keys mean equal bytes."""


class Tier(enum.IntEnum):
    """A level of memory; smaller is faster."""

    DEVICE = 0
    HOST = 1
    DISK = 2


class Home(enum.Enum):
    """Where a unit's bytes can be had again once every copy is gone."""

    FILE = "file"
    DISK = "disk"
    RECOMPUTE = "recompute"


class Answer(enum.Enum):
    """What a tier or a transfer says when asked; never None and never -1."""

    HIT = "hit"
    IN_FLIGHT = "in flight"
    THROTTLED = "throttled"
    MISS = "miss"


@dataclass(frozen=True, slots=True)
class Move:
    """One unit copied from a slot of one tier to a slot of another; the source stays valid until it lands."""

    unit: UnitId
    source: Tier
    source_slot: SlotId
    target: Tier
    target_slot: SlotId
