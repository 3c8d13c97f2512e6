"""What every eviction policy must keep to, and the order that is LRU's own."""

from __future__ import annotations

from random import Random

import pytest

from tokenvm.errors import ConfigError
from tokenvm.residency.policy.base import NoPolicy, Policy
from tokenvm.residency.policy.lru import Lru
from tokenvm.residency.policy.registry import POLICIES, make_policy
from tokenvm.vocab import UnitId

A, B, C, D = map(UnitId, range(4))


def anyone(unit: UnitId) -> bool:
    return True


class PolicyConformance:
    """Inherit it and name the policy."""

    name: str
    never_has_victims = False

    @pytest.fixture
    def policy(self) -> Policy:
        return make_policy(self.name)

    def offers(self, *units: UnitId) -> set[UnitId]:
        return set() if self.never_has_victims else set(units)

    def test_it_is_called_by_its_name(self, policy: Policy) -> None:
        assert policy.name == self.name

    def test_each_one_made_is_fresh(self, policy: Policy) -> None:
        policy.insert(A)
        assert make_policy(self.name).victims(1, anyone) == []

    def test_every_inserted_unit_is_offered_once(self, policy: Policy) -> None:
        for unit in (A, B, C, A):
            policy.insert(unit)
        victims = policy.victims(10, anyone)
        assert len(victims) == len(set(victims))
        assert set(victims) == self.offers(A, B, C)

    def test_at_most_count(self, policy: Policy) -> None:
        for unit in (A, B, C):
            policy.insert(unit)
        for count in range(4):
            assert len(policy.victims(count, anyone)) == len(self.offers(*(A, B, C)[:count]))

    def test_fewer_are_a_prefix_of_more(self, policy: Policy) -> None:
        for unit in (A, B, C, D):
            policy.insert(unit)
        assert policy.victims(2, anyone) == policy.victims(4, anyone)[:2]

    def test_only_allowed_ones(self, policy: Policy) -> None:
        for unit in (A, B, C):
            policy.insert(unit)
        assert set(policy.victims(3, lambda unit: unit != B)) == self.offers(A, C)
        assert policy.victims(3, lambda unit: False) == []

    def test_removed_units_are_offered_no_more(self, policy: Policy) -> None:
        policy.insert(A)
        policy.insert(B)
        policy.remove(A)
        assert set(policy.victims(2, anyone)) == self.offers(B)
        policy.insert(A)
        assert set(policy.victims(2, anyone)) == self.offers(A, B)

    def test_unknown_units_are_ignored(self, policy: Policy) -> None:
        policy.touch(A)
        policy.remove(A)
        assert policy.victims(1, anyone) == []

    def test_asking_changes_nothing(self, policy: Policy) -> None:
        for unit in (A, B, C):
            policy.insert(unit)
        assert policy.victims(3, anyone) == policy.victims(3, anyone)

    def test_a_touch_keeps_a_unit_known(self, policy: Policy) -> None:
        policy.insert(A)
        policy.touch(A)
        assert set(policy.victims(1, anyone)) == self.offers(A)

    def test_the_same_events_give_the_same_victims(self) -> None:
        """And at any time exactly the units that came and did not leave are offered."""
        one, other = make_policy(self.name), make_policy(self.name)
        random, present = Random(7), set[UnitId]()
        for _ in range(300):
            event, unit = random.choice(["insert", "touch", "remove"]), UnitId(random.randrange(12))
            for policy in (one, other):
                getattr(policy, event)(unit)
            present = {"insert": present | {unit}, "touch": present, "remove": present - {unit}}[event]
            assert one.victims(12, anyone) == other.victims(12, anyone)
            assert set(one.victims(12, anyone)) == self.offers(*present)


class TestLru(PolicyConformance):
    name = "lru"

    def test_what_was_used_longest_ago_goes_first(self) -> None:
        policy = Lru()
        for unit in (A, B, C, D):
            policy.insert(unit)
        policy.touch(A)
        policy.insert(C)
        assert policy.victims(4, anyone) == [B, D, A, C]
        assert policy.victims(2, lambda unit: unit != B) == [D, A]

    def test_a_touch_does_not_bring_back_what_left(self) -> None:
        policy = Lru()
        policy.insert(A)
        policy.remove(A)
        policy.touch(A)
        assert policy.victims(1, anyone) == []


class TestNoPolicy(PolicyConformance):
    name = "none"
    never_has_victims = True

    def test_it_never_has_a_victim(self) -> None:
        policy = NoPolicy()
        policy.insert(A)
        assert policy.victims(1, anyone) == []


def test_every_registered_policy_is_held_to_the_suite() -> None:
    assert {suite.name for suite in PolicyConformance.__subclasses__()} == set(POLICIES)


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'mru' does not exist: choose one of lru, none"):
        make_policy("mru")
