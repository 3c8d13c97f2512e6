"""Who leaves the device, who comes back, what is written behind, what is streamed. Decides; never executes.

Pages of running sequences are needed. All others are idle here, whoever owns them: they leave first.

Dense decode touches every page of a running sequence in every step, layer by layer: a cyclic scan, on which
giving up the least recently used page never hits. So pages of running sequences leave newest first and come
back oldest first: what is resident stays resident, step after step, and the rest is streamed. For equal pages
in a cyclic scan of N with room for D that hits D of N times, and nothing hits more often. Belady's optimum,
which brings in every page it touches, hits (D - 1) of (N - 1) times: streaming is better.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice

from tokenvm.residency.ledger import Ledger
from tokenvm.residency.policy.base import Policy
from tokenvm.vocab import Answer, Tier, UnitId

Pages = Sequence[UnitId]


class Parting(enum.Enum):
    """What it takes for a victim to leave the device."""

    DROP = "drop"  # a whole copy lies below: nothing moves
    AWAIT = "await"  # a copy is on its way down: wait for it, then drop
    DEMOTE = "demote"  # no copy below: write one, wait, drop


_COSTS: Mapping[Parting, int] = {parting: cost for cost, parting in enumerate(Parting)}


@dataclass(frozen=True, slots=True)
class Victim:
    """A page that should leave the device, and how."""

    unit: UnitId
    parting: Parting


def choose_idle(
    count: int, ledger: Ledger, policy: Policy[UnitId], needed: Set[UnitId], room: int | None = None
) -> list[Victim]:
    """Choose at most `count` sealed, unpinned pages on the device, none of those needed, in the policy's order.

    A page that would have to be written where there is no room below is never chosen; `room` is how many fit there,
    if not what is free.
    """
    if count <= 0:
        return []
    room = _room_below(ledger) if room is None else room
    units = policy.victims(
        count if room >= count else ledger.used(Tier.DEVICE),
        lambda unit: unit not in needed and _may_leave(unit, ledger) and (room > 0 or ledger.lowered(unit)),
    )
    return _that_fit(units, count, ledger, room)


def choose_running(
    count: int, ledger: Ledger, running: Sequence[Pages], room: int | None = None
) -> list[Victim]:
    """Choose at most `count` sealed, unpinned pages on the device of those that are running.

    Those that are free to drop before those on their way down before those that have to be written, and among equals
    the newest first. `room`: see `choose_idle`.
    """
    if count <= 0:
        return []
    scanned = [unit for unit in reversed(_oldest_first(running)) if _may_leave(unit, ledger)]
    units = sorted(scanned, key=lambda unit: _COSTS[_parting(unit, ledger)])  # stable: newest first
    return _that_fit(units, count, ledger, _room_below(ledger) if room is None else room)


def choose_victims(
    count: int, ledger: Ledger, policy: Policy[UnitId], running: Sequence[Pages]
) -> list[Victim]:
    """Choose at most `count` pages to leave the device: idle ones, then running ones."""
    needed = {unit for pages in running for unit in pages}
    idle = choose_idle(count, ledger, policy, needed)
    room = _room_below(ledger) - sum(victim.parting is Parting.DEMOTE for victim in idle)
    return idle + choose_running(count - len(idle), ledger, running, room)


def choose_promotions(spare_slots: int, ledger: Ledger, running: Sequence[Pages]) -> list[UnitId]:
    """Choose streamed pages for `spare_slots` free device slots: the oldest of each sequence, in turn."""
    wanted = (unit for unit in _oldest_first(running) if streamed(unit, ledger))
    return list(islice(wanted, max(0, spare_slots)))


def streamed(unit: UnitId, ledger: Ledger) -> bool:
    """Whether a sealed page has a whole copy, but none on the device or on its way there."""
    found = ledger.find(unit)
    lies_below = found.answer is Answer.HIT and found.tier is not Tier.DEVICE
    return lies_below and ledger.sealed(unit) and not ledger.arriving(unit, Tier.DEVICE)


def unwritten(ledger: Ledger, running: Sequence[Pages]) -> list[UnitId]:
    """Return the sealed pages on the device that have no copy below it, nor one on its way there, in order."""
    units = dict.fromkeys(unit for pages in running for unit in pages)
    return [
        unit
        for unit in units
        if ledger.sealed(unit) and ledger.resident(unit, Tier.DEVICE) and not ledger.lowered(unit)
    ]


def unwritten_of(victims: Sequence[Victim]) -> list[UnitId]:
    """Return those that cannot leave before a copy of them was written."""
    return [victim.unit for victim in victims if victim.parting is Parting.DEMOTE]


def choose_write_behind(ledger: Ledger, running: Sequence[Pages]) -> list[tuple[UnitId, Tier]]:
    """Choose the sealed pages that have no copy below the device, in order, each with the tier it goes to."""
    tiers = (tier for tier in (Tier.HOST, Tier.DISK) for _ in range(ledger.free(tier)))
    return list(zip(unwritten(ledger, running), tiers, strict=False))


def _may_leave(unit: UnitId, ledger: Ledger) -> bool:
    return ledger.sealed(unit) and ledger.resident(unit, Tier.DEVICE) and not ledger.pinned(unit)


def _room_below(ledger: Ledger) -> int:
    return ledger.free(Tier.HOST) + ledger.free(Tier.DISK)


def _that_fit(units: Sequence[UnitId], count: int, ledger: Ledger, room: int) -> list[Victim]:
    """Take the first `count` of those that need no more than this room below."""
    victims: list[Victim] = []
    for unit in units:
        parting = _parting(unit, ledger)
        if len(victims) == count:
            break
        if parting is not Parting.DEMOTE or room > 0:
            room -= parting is Parting.DEMOTE
            victims.append(Victim(unit, parting))
    return victims


def _parting(unit: UnitId, ledger: Ledger) -> Parting:
    if ledger.droppable(unit, Tier.DEVICE):
        return Parting.DROP
    return Parting.AWAIT if ledger.lowered(unit) else Parting.DEMOTE


def _oldest_first(running: Sequence[Pages]) -> list[UnitId]:
    """Heads before tails, over all sequences in turn; a shared page counts where it is oldest."""
    return list(dict.fromkeys(unit for rank in _ranks(running) for unit in rank))


def _ranks(running: Sequence[Pages]) -> Iterator[list[UnitId]]:
    """Yield the first pages of all sequences, then the second ones, and so on."""
    for index in range(max((len(pages) for pages in running), default=0)):
        yield [pages[index] for pages in running if index < len(pages)]
