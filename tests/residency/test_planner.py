"""The planner against plain specifications, and its claims about cyclic scans against brute force."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tokenvm.residency.ledger import Ledger
from tokenvm.residency.planner import (
    Pages,
    Parting,
    Victim,
    choose_idle,
    choose_promotions,
    choose_running,
    choose_victims,
    choose_write_behind,
    unwritten_of,
)
from tokenvm.residency.policy.base import NoPolicy
from tokenvm.residency.policy.lru import Lru
from tokenvm.vocab import Tier, UnitId

KINDS = {
    "open": None,
    "device only": Parting.DEMOTE,
    "going down": Parting.AWAIT,
    "device and disk": Parting.DROP,
    "device and host": Parting.DROP,
    "disk and read for host": Parting.DROP,
    "read for host": Parting.AWAIT,
    "pinned": None,
    "disk only": None,
    "coming up": None,
    "lost": None,
}
"""What may be true of a page, and how it would part from the device if it may."""


def page(ledger: Ledger, kind: str) -> UnitId:
    """Bring a page to life and into that state."""
    unit = ledger.create(Tier.DEVICE)
    if kind == "open":
        return unit
    ledger.seal(unit)
    if kind == "going down":
        ledger.begin(unit, Tier.DEVICE, Tier.DISK)
    elif kind != "device only":
        ledger.land(ledger.begin(unit, Tier.DEVICE, Tier.HOST if kind == "device and host" else Tier.DISK))
    if kind == "pinned":
        ledger.pin([unit])
    if kind == "disk and read for host":
        ledger.begin(unit, Tier.DISK, Tier.HOST)
    if kind == "read for host":
        ledger.begin(unit, Tier.DEVICE, Tier.HOST)
    if kind in ("disk only", "coming up", "lost"):
        ledger.drop(unit, Tier.DEVICE)
    if kind == "coming up":
        ledger.begin(unit, Tier.DISK, Tier.DEVICE)
    if kind == "lost":
        ledger.lose(unit, Tier.DISK)
    return unit


def roomy_ledger() -> Ledger:
    return Ledger(dict.fromkeys(Tier, 100))


def age(unit: UnitId, running: Sequence[Pages]) -> tuple[int, int]:
    """Where a page first comes up when all sequences are walked side by side."""
    return min((pages.index(unit), turn) for turn, pages in enumerate(running) if unit in pages)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Ledger, dict[UnitId, str], list[list[UnitId]], list[UnitId]]:
    """A ledger, the kind of each page, running sequences that share some pages, and pages nobody runs."""
    ledger = roomy_ledger()
    kinds = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=14))
    units = {page(ledger, kind): kind for kind in kinds}
    rows = draw(st.lists(st.integers(0, 3), min_size=len(kinds), max_size=len(kinds)))
    running: list[list[UnitId]] = [[], [], []]
    idle: list[UnitId] = []
    for unit, row in zip(units, rows, strict=True):
        (running[row] if row < 3 else idle).append(unit)
    shared = draw(st.integers(0, len(running[0])))
    running[1] = running[0][:shared] + running[1]
    return ledger, units, running, idle


examples = settings(max_examples=100, derandomize=True, deadline=None, database=None)


@examples
@given(situations(), st.integers(0, 12))
def test_victims_are_what_the_specification_says(
    situation: tuple[Ledger, dict[UnitId, str], list[list[UnitId]], list[UnitId]], count: int
) -> None:
    ledger, kinds, running, idle = situation
    policy = Lru()
    for unit in kinds:
        policy.insert(unit)
    unneeded = [unit for unit in idle if KINDS[kinds[unit]]]
    scanned = {unit for pages in running for unit in pages if KINDS[kinds[unit]]}
    by_age = sorted(scanned, key=lambda unit: age(unit, running), reverse=True)
    by_cost = [unit for parting in Parting for unit in by_age if KINDS[kinds[unit]] is parting]
    expected = (unneeded + by_cost)[:count]
    victims = choose_victims(count, ledger, policy, running)
    assert [victim.unit for victim in victims] == expected
    assert [victim.parting for victim in victims] == [KINDS[kinds[unit]] for unit in expected]


def test_nobody_is_told_to_write_where_there_is_no_room() -> None:
    ledger = Ledger({Tier.DEVICE: 3, Tier.HOST: 0, Tier.DISK: 1})
    going, dirty, idle = (page(ledger, "device only") for _ in range(3))
    ledger.begin(going, Tier.DEVICE, Tier.DISK)
    policy = Lru()
    policy.insert(idle)
    assert choose_victims(3, ledger, policy, [[going, dirty]]) == [Victim(going, Parting.AWAIT)]


@examples
@given(situations(), st.integers(0, 12), st.integers(0, 12))
def test_idle_and_running_victims_take_no_more_room_below_than_there_is(
    situation: tuple[Ledger, dict[UnitId, str], list[list[UnitId]], list[UnitId]], count: int, room: int
) -> None:
    ledger, kinds, running, idle = situation
    policy = Lru()
    for unit in kinds:
        policy.insert(unit)
    needed = {unit for pages in running for unit in pages}
    from_idle = choose_idle(count, ledger, policy, needed, room)
    for victims, candidates in ((from_idle, idle), (choose_running(count, ledger, running, room), needed)):
        assert len(unwritten_of(victims)) <= room
        assert {victim.unit for victim in victims} <= set(candidates)
        leaving = [unit for unit in candidates if KINDS[kinds[unit]]]
        free = [unit for unit in leaving if KINDS[kinds[unit]] is not Parting.DEMOTE]
        assert len(victims) == min(count, len(free) + min(room, len(leaving) - len(free)))


@examples
@given(situations(), st.integers(0, 6))
def test_promotions_are_the_oldest_streamed_pages_each_once(
    situation: tuple[Ledger, dict[UnitId, str], list[list[UnitId]], list[UnitId]], spare: int
) -> None:
    ledger, kinds, running, _ = situation
    streamed = {unit for pages in running for unit in pages if kinds[unit] == "disk only"}
    chosen = choose_promotions(spare, ledger, running)
    assert chosen == sorted(streamed, key=lambda unit: age(unit, running))[:spare]
    for unit in chosen:
        ledger.land(ledger.begin(unit, ledger.find(unit).tier, Tier.DEVICE))


@examples
@given(situations(), st.integers(0, 3), st.integers(0, 3))
def test_write_behind_fills_the_host_then_the_disk_each_page_once(
    situation: tuple[Ledger, dict[UnitId, str], list[list[UnitId]], list[UnitId]], host: int, disk: int
) -> None:
    ledger, kinds, running, _ = situation
    for tier, room in ((Tier.HOST, host), (Tier.DISK, disk)):
        while ledger.free(tier) > room:
            ledger.create(tier)
    dirty = dict.fromkeys(unit for pages in running for unit in pages if kinds[unit] == "device only")
    tiers = [Tier.HOST] * host + [Tier.DISK] * disk
    chosen = choose_write_behind(ledger, running)
    assert chosen == list(zip(dirty, tiers, strict=False))
    for unit, tier in chosen:
        ledger.land(ledger.begin(unit, Tier.DEVICE, tier))
    assert choose_write_behind(ledger, running) == [] or len(dirty) > len(tiers)


def test_write_behind_goes_to_the_host_then_to_the_disk_and_no_further() -> None:
    ledger = Ledger({Tier.DEVICE: 6, Tier.HOST: 2, Tier.DISK: 3})
    units = [page(ledger, "device only") for _ in range(6)]
    running = [units[:2], units[2:]]
    tiers = [Tier.HOST] * 2 + [Tier.DISK] * 3
    assert choose_write_behind(ledger, running) == list(zip(units, tiers, strict=False))


def test_two_sequences_with_one_prefix() -> None:
    ledger = roomy_ledger()
    head = page(ledger, "device and disk")
    left, right = page(ledger, "device and disk"), page(ledger, "device and disk")
    running = [[head, left], [head, right]]
    assert [victim.unit for victim in choose_victims(9, ledger, NoPolicy(), running)] == [right, left, head]
    for unit in (head, left, right):
        ledger.drop(unit, Tier.DEVICE)
    assert choose_promotions(9, ledger, running) == [head, left, right]
    assert choose_promotions(-1, ledger, running) == []


def test_a_page_that_must_be_written_leaves_last() -> None:
    ledger = roomy_ledger()
    kinds = ("device and disk", "device and disk", "going down", "device only")
    units = [page(ledger, kind) for kind in kinds]
    expected = [
        Victim(units[1], Parting.DROP),
        Victim(units[0], Parting.DROP),
        Victim(units[2], Parting.AWAIT),
        Victim(units[3], Parting.DEMOTE),
    ]
    assert choose_victims(9, ledger, NoPolicy(), [units]) == expected


# A cyclic scan of N pages with room for D


def scan_with_planner(pages: int, room: int, laps: int, resident: Sequence[int]) -> list[int]:
    """Hits of each lap, where pages come back only into free slots and the others are streamed."""
    ledger = Ledger({Tier.DEVICE: room, Tier.DISK: pages})
    units = [ledger.create(Tier.DISK) for _ in range(pages)]
    for unit in units:
        ledger.seal(unit)
    for index in resident:
        ledger.land(ledger.begin(units[index], Tier.DISK, Tier.DEVICE))
    hits = []
    for _ in range(laps):
        for unit in choose_promotions(ledger.free(Tier.DEVICE), ledger, [units]):
            ledger.land(ledger.begin(unit, Tier.DISK, Tier.DEVICE))
        hits.append(sum(ledger.resident(unit, Tier.DEVICE) for unit in units))
        ledger.check()
    return hits


def scan_with_lru(pages: int, room: int, laps: int) -> int:
    policy, resident, hits = Lru(), set[UnitId](), 0
    for _, unit in product(range(laps), map(UnitId, range(pages))):
        if unit in resident:
            hits += 1
            policy.touch(unit)
            continue
        if len(resident) == room:
            (victim,) = policy.victims(1, lambda _: True)
            policy.remove(victim)
            resident.remove(victim)
        policy.insert(unit)
        resident.add(unit)
    return hits


def most_hits(pages: int, room: int, touches: int, may_stream: bool) -> int:
    """The most hits of any strategy, by trying all; `may_stream`: a missed page need not be brought in."""

    @cache
    def best(touch: int, resident: frozenset[int]) -> int:
        if touch == touches:
            return 0
        current = touch % pages
        if current in resident:
            return 1 + best(touch + 1, resident)
        outcomes = [best(touch + 1, (resident - {gone}) | {current}) for gone in resident]
        return max(outcomes + [best(touch + 1, resident)] * may_stream)

    return best(0, frozenset(range(room)))


SCANS = [(pages, room) for pages in (3, 4, 5) for room in range(1, pages)]


@pytest.mark.parametrize(("pages", "room"), [*SCANS, (20, 2), (20, 19)])
def test_a_stable_subset_hits_d_of_n_and_lru_never(pages: int, room: int) -> None:
    assert scan_with_lru(pages, room, laps=5) == 0
    assert scan_with_lru(pages, pages, laps=5) == 4 * pages, "with room for all of them LRU is as good as any"
    for resident in (range(0), range(room), range(pages - room, pages), range(0, room, 2)):
        assert scan_with_planner(pages, room, 5, resident) == [room] * 5


@pytest.mark.parametrize(("pages", "room"), SCANS)
def test_nothing_hits_more_often_than_the_docstring_says(pages: int, room: int) -> None:
    """Over N - 1 laps in the long run: D of N of the touches with streaming, (D - 1) of (N - 1) without."""
    period = pages * (pages - 1)
    gains = [
        most_hits(pages, room, 2 * period, may_stream) - most_hits(pages, room, period, may_stream)
        for may_stream in (True, False)
    ]
    assert gains == [room * (pages - 1), (room - 1) * pages]


def test_a_growing_sequence_keeps_its_oldest_pages() -> None:
    room = 4
    ledger = Ledger({Tier.DEVICE: room, Tier.DISK: 12})
    pages: list[UnitId] = []
    for _ in range(12):
        short = max(0, 1 - ledger.free(Tier.DEVICE))
        for victim in choose_victims(short, ledger, Lru(), [pages]):
            assert victim.parting is Parting.DROP, "what was written behind leaves without waiting"
            ledger.drop(victim.unit, Tier.DEVICE)
        pages.append(ledger.create(Tier.DEVICE))
        ledger.seal(pages[-1])
        for unit, tier in choose_write_behind(ledger, [pages]):
            ledger.land(ledger.begin(unit, Tier.DEVICE, tier))
        ledger.check()
    resident = [unit for unit in pages if ledger.resident(unit, Tier.DEVICE)]
    assert resident == [*pages[: room - 1], pages[-1]]
