"""What every eviction policy must keep to, and the order that is each one's own."""

from __future__ import annotations

from random import Random

import pytest

from tokenvm.errors import ConfigError
from tokenvm.residency.policy.auto import Auto
from tokenvm.residency.policy.base import NoPolicy, Policy
from tokenvm.residency.policy.hazard import FIRST
from tokenvm.residency.policy.lru import Lru
from tokenvm.residency.policy.predictor import CLASSES, EPOCH, Predictor
from tokenvm.residency.policy.registry import POLICIES, make_device_policy, make_policy
from tokenvm.residency.policy.s3_fifo import S3Fifo
from tokenvm.residency.policy.shadow import Shadow
from tokenvm.vocab import UnitId

A, B, C, D = map(UnitId, range(4))


def anyone(unit: UnitId) -> bool:
    return True


class PolicyConformance:
    """Inherit it and name the policy."""

    name: str
    never_has_victims = False

    @pytest.fixture
    def policy(self) -> Policy[UnitId]:
        return make_policy(self.name)

    def offers(self, *units: UnitId) -> set[UnitId]:
        return set() if self.never_has_victims else set(units)

    def test_it_is_called_by_its_name(self, policy: Policy[UnitId]) -> None:
        assert policy.name == self.name

    def test_each_one_made_is_fresh(self, policy: Policy[UnitId]) -> None:
        policy.insert(A)
        assert make_policy(self.name).victims(1, anyone) == []

    def test_every_inserted_unit_is_offered_once(self, policy: Policy[UnitId]) -> None:
        for unit in (A, B, C, A):
            policy.insert(unit)
        victims = policy.victims(10, anyone)
        assert len(victims) == len(set(victims))
        assert set(victims) == self.offers(A, B, C)

    def test_at_most_count(self, policy: Policy[UnitId]) -> None:
        for unit in (A, B, C):
            policy.insert(unit)
        for count in range(4):
            assert len(policy.victims(count, anyone)) == len(self.offers(*(A, B, C)[:count]))

    def test_fewer_are_a_prefix_of_more(self, policy: Policy[UnitId]) -> None:
        for unit in (A, B, C, D):
            policy.insert(unit)
        assert policy.victims(2, anyone) == policy.victims(4, anyone)[:2]

    def test_only_allowed_ones(self, policy: Policy[UnitId]) -> None:
        for unit in (A, B, C):
            policy.insert(unit)
        assert set(policy.victims(3, lambda unit: unit != B)) == self.offers(A, C)
        assert policy.victims(3, lambda unit: False) == []

    def test_removed_units_are_offered_no_more(self, policy: Policy[UnitId]) -> None:
        policy.insert(A)
        policy.insert(B)
        policy.remove(A)
        assert set(policy.victims(2, anyone)) == self.offers(B)
        policy.insert(A)
        assert set(policy.victims(2, anyone)) == self.offers(A, B)

    def test_unknown_units_are_ignored(self, policy: Policy[UnitId]) -> None:
        policy.touch(A)
        policy.remove(A)
        assert policy.victims(1, anyone) == []

    def test_asking_changes_nothing(self, policy: Policy[UnitId]) -> None:
        for unit in (A, B, C):
            policy.insert(unit)
        assert policy.victims(3, anyone) == policy.victims(3, anyone)

    def test_a_touch_keeps_a_unit_known(self, policy: Policy[UnitId]) -> None:
        policy.insert(A)
        policy.touch(A)
        assert set(policy.victims(1, anyone)) == self.offers(A)

    def test_what_is_lent_is_not_offered_until_it_is_back(self, policy: Policy[UnitId]) -> None:
        policy.insert(A, B, C)
        policy.lend(B, D)
        assert set(policy.victims(3, anyone)) == self.offers(A, C)
        policy.insert(B)
        assert set(policy.victims(4, anyone)) == self.offers(A, B, C)
        policy.lend(A, B)
        policy.remove(A)
        policy.evict(B)
        assert set(policy.victims(4, anyone)) == self.offers(C)

    def test_tails_go_before_heads(self, policy: Policy[UnitId]) -> None:
        """Of the pages of a request, given tail first, those that are treated alike."""
        policy.resize(8)
        for _ in range(2):
            policy.visit(range(4))
            policy.insert(*reversed(range(4)))
        victims = policy.victims(4, anyone)
        assert victims == sorted(victims, reverse=True)

    def test_what_was_evicted_may_come_back(self, policy: Policy[UnitId]) -> None:
        policy.resize(2)
        for unit in (A, B, C, A, D, A, B):
            policy.visit((unit,))
            policy.insert(unit)
            for victim in policy.victims(1, lambda other, kept=unit: other != kept):
                policy.evict(victim)
            assert set(policy.victims(9, anyone)) == self.offers(unit)

    def test_the_same_events_give_the_same_victims(self) -> None:
        """And at any time exactly the units that came, did not leave and are not lent are offered."""
        one, other = make_policy(self.name), make_policy(self.name)
        random = Random(7)
        present, lent = set[UnitId](), set[UnitId]()
        for policy in (one, other):
            policy.resize(6)
        for _ in range(600):
            event = random.choice(["insert", "insert", "touch", "lend", "evict", "remove", "visit", "extend"])
            units = [UnitId(random.randrange(12)) for _ in range(random.randint(1, 3))]
            for policy in (one, other):
                if event == "visit":
                    policy.visit(units)
                elif event == "extend":
                    policy.extend(units[0], units[-1])
                else:
                    getattr(policy, event)(*units)
            if event in ("insert", "evict", "remove"):
                present = present | set(units) if event == "insert" else present - set(units)
                lent -= set(units)
            elif event == "lend":
                lent |= set(units) & present
            assert one.victims(12, anyone) == other.victims(12, anyone)
            assert set(one.victims(12, anyone)) == self.offers(*present - lent)


class TestLru(PolicyConformance):
    name = "lru"

    def test_what_was_used_longest_ago_goes_first(self) -> None:
        policy = Lru[UnitId]()
        for unit in (A, B, C, D):
            policy.insert(unit)
        policy.touch(A)
        policy.insert(C)
        assert policy.victims(4, anyone) == [B, D, A, C]
        assert policy.victims(2, lambda unit: unit != B) == [D, A]

    def test_a_touch_does_not_bring_back_what_left(self) -> None:
        policy = Lru[UnitId]()
        policy.insert(A)
        policy.remove(A)
        policy.touch(A)
        assert policy.victims(1, anyone) == []


class TestTwoQ(PolicyConformance):
    name = "2q"

    def test_a_scan_passes_through_the_short_queue(self) -> None:
        policy = make_policy("2q")
        policy.resize(4)
        policy.insert(A, B)
        policy.evict(A)
        policy.insert(A)  # it came back after the short queue: kept
        policy.insert(C, D)
        assert policy.victims(4, anyone) == [B, C, A, D]


class TestArc(PolicyConformance):
    name = "arc"

    def test_what_is_used_again_stays_longer(self) -> None:
        policy = make_policy("arc")
        policy.resize(4)
        policy.insert(A, B, C)
        policy.touch(A)
        assert policy.victims(3, anyone) == [B, C, A]

    def test_a_unit_that_returns_to_those_used_once_asks_for_more_room_for_them(self) -> None:
        policy = make_policy("arc")
        policy.resize(3)
        policy.insert(A, B, C)
        policy.touch(A)
        policy.evict(B)
        policy.insert(B)
        assert policy.victims(3, anyone) == [A, B, C], "one place is now for those used once"


class TestS3Fifo(PolicyConformance):
    name = "s3fifo"

    def test_two_uses_in_the_small_queue_bring_a_unit_into_the_main_one(self) -> None:
        policy = make_policy("s3fifo")
        policy.resize(4)
        policy.insert(A, B, C)
        policy.touch(A, A, B)
        assert policy.victims(3, anyone) == [B, C, A]


class TestPredictor(PolicyConformance):
    name = "predictor"

    def test_it_learns_that_a_session_returns_once(self) -> None:
        """After 30 others; what is asked for meanwhile does not fit, what returns does. LRU finds nothing."""

        def returns_found(name: str) -> int:
            shadow, found = Shadow[int](make_policy(name)), 0
            shadow.resize(400)
            for turn in range(1500):
                session = [10 * turn + page for page in range(10)]
                shadow.ask(session)
                before = [unit - 300 for unit in session]
                found += turn >= 1000 and shadow.leading(before) == 10
                shadow.ask([*before, 10**6 + turn])
            return found

        assert returns_found("lru") == 0
        assert returns_found("predictor") > 450

    def test_uses_that_nobody_stands_in_any_more_are_forgotten(self) -> None:
        policy = Predictor[int]()
        policy.resize(100)
        for _ in range(40 * EPOCH // FIRST):
            policy.insert(*range(FIRST))
        assert sum(map(len, policy._groups)) <= EPOCH // FIRST + 2 * CLASSES


class TestAuto(PolicyConformance):
    name = "auto"

    def test_who_finds_most_rules(self) -> None:
        """A scan just longer than the room: LRU finds nothing."""
        policy = Auto[int]((Lru, S3Fifo))
        policy.resize(20)
        assert policy.ruling == "lru"
        for step in range(4000):
            policy.visit((step % 5,) if step % 3 else (100 + step % 22,))
        assert policy.ruling == "s3fifo"

    def test_what_the_ruler_would_not_hold_goes_first(self) -> None:
        policy = Auto[int]((Lru,))
        policy.resize(2)
        for unit in (1, 2, 3):
            policy.visit((unit,))
            policy.insert(unit)
        policy.visit((1,))
        assert policy.victims(3, anyone) == [2, 3, 1]
        policy.visit((2,))
        assert policy.victims(3, anyone) == [3, 1, 2]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_one_by_one_every_policy_is_told_enough(name: str) -> None:
    policy = make_device_policy(name, 4)
    policy.insert(A, B, C)
    policy.touch(A, D)
    policy.lend(B)
    policy.touch(B)
    assert set(policy.victims(4, anyone)) == (set() if name == "none" else {A, C})
    policy.evict(A)
    policy.remove(C)
    policy.insert(B)
    assert policy.victims(4, anyone) == ([] if name == "none" else [B])


class TestNoPolicy(PolicyConformance):
    name = "none"
    never_has_victims = True

    def test_it_never_has_a_victim(self) -> None:
        policy = NoPolicy[UnitId]()
        policy.insert(A)
        assert policy.victims(1, anyone) == []


def test_every_registered_policy_is_held_to_the_suite() -> None:
    assert {suite.name for suite in PolicyConformance.__subclasses__()} == set(POLICIES)


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match="'mru' does not exist: choose one of 2q, arc, auto, lru, none, predictor, s3fifo"
    ):
        make_policy("mru")
