"""What of a prefix is worth reading, against all possible cuts; what comes to the device, and what stays free."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from tokenvm.residency.ledger import Ledger
from tokenvm.residency.policy.lru import Lru
from tokenvm.residency.prefix_plan import Arrivals, Rates, worth_reading, worthwhile_pages
from tokenvm.vocab import Tier, UnitId

PAGE, BLOCK = 1000, 10

examples = settings(max_examples=200, derandomize=True, deadline=None, database=None)


def test_a_page_is_read_if_that_takes_no_longer_than_computing_it() -> None:
    assert worth_reading(1000, 100.0, 10, 1.0)
    assert not worth_reading(1001, 100.0, 10, 1.0)
    assert worth_reading(10**12, 0.0, 1, 100.0), "nobody knows how fast the disk is"
    assert worth_reading(10**12, 1.0, 1, 0.0), "nobody knows how fast tokens are computed"


@examples
@given(st.lists(st.sampled_from(list(Tier)), max_size=8), st.integers(0, 4), st.integers(0, 4))
def test_the_part_taken_is_the_longest_that_saves_most(tiers: list[Tier], read: int, prefill: int) -> None:
    """Over all cuts: seconds of computing saved, less seconds of reading; whole numbers, so that ties are ties."""
    rates = Rates(read * 500.0, prefill * 5.0)
    taken = worthwhile_pages(tiers, PAGE, BLOCK, rates)
    if not read or not prefill:
        assert taken == len(tiers)
        return

    def saved(cut: int) -> int:
        return 24 * (BLOCK * cut * 100 * read - PAGE * tiers[:cut].count(Tier.DISK) * prefill)

    assert taken == max(range(len(tiers) + 1), key=lambda cut: (saved(cut), cut))


def prefix_on(ledger: Ledger, *tiers: Tier) -> list[UnitId]:
    units = []
    for tier in tiers:
        units.append(ledger.create(tier))
        ledger.seal(units[-1])
    return units


def test_the_oldest_pages_come_to_slots_that_are_free() -> None:
    ledger = Ledger({Tier.DEVICE: 4, Tier.HOST: 4, Tier.DISK: 4})
    prefix = prefix_on(ledger, Tier.DISK, Tier.DEVICE, Tier.HOST, Tier.DISK)
    assert Arrivals.choose(prefix, 1, ledger, Lru(), []) == Arrivals((prefix[0], prefix[2]), 0)
    assert Arrivals.choose(prefix, 3, ledger, Lru(), []) == Arrivals((), 0)


def test_idle_pages_make_room_but_not_running_ones_nor_those_of_the_prefix() -> None:
    ledger, policy = Ledger({Tier.DEVICE: 3, Tier.HOST: 8, Tier.DISK: 8}), Lru()
    prefix = prefix_on(ledger, Tier.DEVICE, Tier.DISK, Tier.DISK)
    idle, runs = prefix_on(ledger, Tier.DEVICE, Tier.DEVICE)
    for unit in (prefix[0], idle, runs):
        policy.insert(unit)
    assert Arrivals.choose(prefix, 0, ledger, policy, [[runs]]) == Arrivals((prefix[1],), 1)
    assert Arrivals.choose(prefix, 0, ledger, policy, [[runs, idle]]) == Arrivals((), 0)
    assert Arrivals.choose(prefix[:1], 0, ledger, policy, []) == Arrivals((), 0)


def test_idle_pages_without_room_below_stay() -> None:
    ledger, policy = Ledger({Tier.DEVICE: 1, Tier.DISK: 1}), Lru()
    prefix = prefix_on(ledger, Tier.DISK)
    (idle,) = prefix_on(ledger, Tier.DEVICE)
    policy.insert(idle)
    assert Arrivals.choose(prefix, 0, ledger, policy, []) == Arrivals((), 0)
