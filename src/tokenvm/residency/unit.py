"""What the ledger knows of one unit: its copies, who needs it, and the laws of that."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenvm.vocab import Answer, Home, SlotId, Tier, UnitId


@dataclass(slots=True)
class Copy:
    """One unit's bytes in one tier. `arriving` until they are whole; `sources` moves read from it now."""

    slot: SlotId
    arriving: bool = False
    sources: int = 0


@dataclass(slots=True)
class Unit:
    """What is known of one unit. `references` owners need it; `pins` hold its device copy in place."""

    home: Home
    copies: dict[Tier, Copy] = field(default_factory=dict)
    references: int = 1
    pins: int = 0
    sealed: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """Where the fastest whole copy of a unit lies. HIT; IN_FLIGHT if the only copy is arriving; MISS if lost:
    then tier and slot mean nothing.
    """

    answer: Answer
    tier: Tier
    slot: SlotId


def check_unit(name: UnitId, unit: Unit) -> None:
    """Assert the laws of one unit."""
    whole = [copy for copy in unit.copies.values() if not copy.arriving]
    assert whole or unit.lost, f"unit {name} is nowhere"
    assert (
        unit.references > 0 or unit.pins or len(whole) < len(unit.copies) or any(c.sources for c in whole)
    ), f"unit {name} has no owner and no reason to stay"
    if unit.pins:
        held = any(tier is Tier.DEVICE and not copy.arriving for tier, copy in unit.copies.items())
        assert held, f"unit {name} is pinned, but not on the device"
    arriving = len(unit.copies) - len(whole)
    assert sum(copy.sources for copy in unit.copies.values()) == arriving, f"unit {name}: moves do not add up"
