"""The prefix index against a brute-force model: who is found, who is idle, who goes first, and what goes along."""

from __future__ import annotations

from collections import Counter
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, given, settings

from tokenvm.residency.keys import ROOT
from tokenvm.residency.policy.base import NoPolicy
from tokenvm.residency.policy.lru import Lru
from tokenvm.residency.prefix_index import PrefixIndex
from tokenvm.vocab import PageKey, UnitId

STEPS = {
    "add": 6,
    "let_go": 5,
    "take": 3,
    "touch": 2,
    "reclaim": 3,
    "reclaim_some": 2,
    "remove": 1,
    "walk": 4,
}


def key_of(path: tuple[int, ...]) -> PageKey:
    return PageKey(b"".join(step.to_bytes(1, "little") for step in path)) if path else ROOT


class Model:
    """Paths of small numbers stand for prefixes; `order` has the idle pages, the least recently used first."""

    def __init__(self, done: Counter[str]) -> None:
        self.done = done
        self.index = PrefixIndex(Lru())
        self.paths: dict[tuple[int, ...], UnitId] = {}
        self.owned: set[tuple[int, ...]] = set()
        self.order: list[tuple[int, ...]] = []
        self.next = 0

    def live(self, random: Random, steps: int) -> None:
        self.random = random
        for step in random.choices(list(STEPS), list(STEPS.values()), k=steps):
            getattr(self, step)()
            self.done["steps"] += 1
            self.laws()

    def add(self) -> None:
        """A sequence computes a page behind some path, known or not."""
        parent = self.random.choice([(), *self.paths, (9, 9)])
        path = (*parent, self.random.randint(0, 2))
        self.next += 1
        taken = self.index.add(key_of(path), key_of(parent), UnitId(self.next))
        assert taken == (path not in self.paths and (parent == () or parent in self.paths))
        self.done["taken" if taken else "refused"] += 1
        if taken:
            self.paths[path] = UnitId(self.next)
            self.owned.add(path)

    def let_go(self) -> None:
        """A sequence that owns some pages of a path ends, tail first; of the rest it had pages of its own."""
        if not self.owned:
            return
        path = self.random.choice(sorted(self.owned))
        for length in range(len(path), 0, -1):
            part = path[:length]
            goes_on = any(other[:length] == part and other != part for other in self.owned)
            if part in self.owned and (not goes_on or self.random.random() < 0.3):
                self.owned.discard(part)
                self.index.idle(self.paths[part])
                self.order.append(part)
                above = part[:-1]
                while above and above in self.order:
                    self.order.remove(above)
                    self.order.append(above)
                    above = above[:-1]
        self.done["let go"] += 1

    def take(self) -> None:
        """A sequence begins with a prefix."""
        if self.paths:
            path = self.random.choice(sorted(self.paths))
            for length in range(1, len(path) + 1):
                self.index.used(self.paths[path[:length]])
                self.owned.add(path[:length])
                if path[:length] in self.order:
                    self.order.remove(path[:length])
                    self.done["taken again"] += 1
        self.index.used(UnitId(10**6))

    def touch(self) -> None:
        if self.paths:
            path = self.random.choice(sorted(self.paths))
            parts = [path[:length] for length in range(1, len(path) + 1)]
            self.index.touch([self.paths[part] for part in parts])
            for part in reversed(parts):
                if part in self.order:
                    self.order.remove(part)
                    self.order.append(part)

    def reclaim(self) -> None:
        self._reclaim(set(self.paths))

    def reclaim_some(self) -> None:
        self._reclaim({path for path in self.paths if self.random.random() < 0.4})

    def _reclaim(self, allowed: set[tuple[int, ...]]) -> None:
        units = {self.paths[path] for path in allowed}
        ranked = [path for path in self.order if path in allowed]
        tails = [path for path in ranked if not self._below(path)]
        first = (tails or ranked)[:1]
        assert self.index.first_to_go(units.__contains__) == [self.paths[path] for path in first]
        for path in first:
            self._remove(path)
            self.done["reclaimed a tail" if tails else "reclaimed a head"] += 1

    def remove(self) -> None:
        """A page was lost."""
        if self.paths:
            self._remove(self.random.choice(sorted(self.paths)))
            self.done["lost"] += 1

    def _remove(self, path: tuple[int, ...]) -> None:
        gone = [path, *self._below(path)]
        names = {self.paths[part]: part for part in gone}
        order = [names[unit] for unit in self.index.remove(self.paths[path])]
        assert sorted(order) == sorted(gone)
        for turn, part in enumerate(order):
            assert not any(later[: len(part)] == part for later in order[turn + 1 :]), (
                "a head before its tail"
            )
            del self.paths[part]
            self.owned.discard(part)
            if part in self.order:
                self.order.remove(part)

    def walk(self) -> None:
        path = tuple(self.random.randint(0, 2) for _ in range(6))
        parts = [path[:length] for length in range(1, 7)]
        known = [self.paths[part] for part in parts if part in self.paths]
        assert self.index.walk(map(key_of, parts)) == known

    def _below(self, path: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [other for other in self.paths if other != path and other[: len(path)] == path]

    def laws(self) -> None:
        self.index.check()
        assert set(self.index) == set(self.paths.values())
        assert len(self.index) == len(self.paths)
        idle = {self.paths[path] for path in self.order}
        assert {unit for unit in self.index if self.index.is_idle(unit)} == idle
        assert self.index.idle_pages == len(idle)


def test_the_index_does_what_the_model_says() -> None:
    done: Counter[str] = Counter()

    @settings(max_examples=120, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
    @given(seed=st.integers(0, 2**32), steps=st.integers(20, 120))
    def live(seed: int, steps: int) -> None:
        Model(done).live(Random(seed), steps)

    live()
    assert done["steps"] > 5_000, done
    paths = ("taken", "refused", "let go", "taken again", "reclaimed a tail", "reclaimed a head", "lost")
    assert all(done[path] >= 20 for path in paths), done


def chain(index: PrefixIndex, count: int) -> list[UnitId]:
    units = [UnitId(number) for number in range(count)]
    for number, unit in enumerate(units):
        index.add(PageKey(bytes([number + 1])), PageKey(bytes([number])) if number else ROOT, unit)
    return units


def test_a_prefix_goes_tail_by_tail() -> None:
    index = PrefixIndex(Lru())
    units = chain(index, 5)
    for unit in reversed(units):
        index.idle(unit)
    index.touch(units[:3])
    gone = []
    while first := index.first_to_go(lambda _: True):
        gone += index.remove(first[0])
    assert gone == units[::-1]


def test_a_policy_without_victims_gives_up_tails_too() -> None:
    index = PrefixIndex(NoPolicy())
    units = chain(index, 3)
    for unit in reversed(units):
        index.idle(unit)
    assert index.first_to_go(lambda _: True) == [units[-1]]
    assert index.first_to_go(lambda unit: unit == units[0]) == [units[0]]
    assert index.first_to_go(lambda _: False) == []


def test_check_fails_when_a_law_is_broken() -> None:
    for break_law, complaint in (
        (lambda index: index._units.popitem(), "do not match"),
        (lambda index: index._nodes[UnitId(0)].children.clear(), "missing below"),
        (lambda index: setattr(index, "idle_pages", 3), "do not add up"),
        (lambda index: index._policy.insert(PageKey(b"x")), "ranks other pages"),
    ):
        index = PrefixIndex(Lru())
        chain(index, 3)
        index.check()
        break_law(index)
        with pytest.raises(AssertionError, match=complaint):
            index.check()


def test_check_fails_where_a_policy_ranks_nothing_at_all() -> None:
    index = PrefixIndex(Lru())
    index.idle(chain(index, 1)[0])
    index.check()
    index._policy.remove(PageKey(bytes([1])))
    with pytest.raises(AssertionError, match="ranks other pages"):
        index.check()
