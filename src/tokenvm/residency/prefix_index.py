"""The prefix index: sealed pages by their key, as a tree of prefixes. It outlives the sequences that computed them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tokenvm.residency.keys import ROOT
from tokenvm.residency.policy.base import Allowed, Policy
from tokenvm.residency.policy.proof import Proof
from tokenvm.vocab import PageKey, UnitId


@dataclass(slots=True)
class Node:
    """One page: the page before it by its key, and the pages that go on from it. Idle: only the index owns it."""

    key: PageKey
    parent: PageKey
    children: dict[UnitId, None] = field(default_factory=dict)
    idle: bool = False


class PrefixIndex:
    """PageKey → unit. Owns one reference of each unit, which whoever adds and removes takes and gives back.

    A page is in it only with the page before it, so that every prefix found is whole. `policy` ranks the idle pages and
    knows no others; by their keys, so that it may know one again. A page becomes idle after the pages that go on from
    it, and is touched with them: least recently used is a tail.
    """

    def __init__(self, policy: Policy[PageKey], proof: Proof | None = None) -> None:
        self.proof = proof or Proof()
        self._policy = policy
        self._units: dict[PageKey, UnitId] = {}
        self._nodes: dict[UnitId, Node] = {}
        self.idle_pages = 0
        self.version = 0  # grows whenever a page becomes idle

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, unit: UnitId) -> bool:
        return unit in self._nodes

    def __iter__(self) -> Iterator[UnitId]:
        return iter(self._nodes)

    def add(self, key: PageKey, parent: PageKey, unit: UnitId) -> bool:
        """Take in a page that a sequence owns; return whether it was: not if its key is known or its parent is not."""
        if key in self._units or (parent != ROOT and parent not in self._units):
            return False
        self._units[key] = unit
        self._nodes[unit] = Node(key, parent)
        if parent != ROOT:
            self._nodes[self._units[parent]].children[unit] = None
        return True

    def name(self, unit: UnitId) -> tuple[PageKey, PageKey]:
        """Return the key of a unit that is here, and that of the page before it."""
        node = self._nodes[unit]
        return node.key, node.parent

    def walk(self, keys: Iterable[PageKey]) -> list[UnitId]:
        """Return the units of the leading keys that are known."""
        found: list[UnitId] = []
        for key in keys:
            if key not in self._units:
                break
            found.append(self._units[key])
        return found

    def visit(self, keys: Sequence[PageKey]) -> None:
        """A sequence begins whose prompt has these pages."""
        self.proof.visit(keys, len(self.walk(keys)))
        self._policy.visit(keys)

    def extend(self, key: PageKey, parent: PageKey) -> None:
        """A page of an answer was computed."""
        self.proof.extend(key, parent)
        self._policy.extend(key, parent)

    def crowded(self) -> None:
        """All that is here fills the room there is: somebody has to go."""
        self.proof.resize(len(self._nodes))
        self._policy.resize(len(self._nodes))

    @property
    def policy_names(self) -> tuple[str, str]:
        """The policy, and the one that decides in its name now."""
        return self._policy.name, self._policy.ruling

    def remove(self, unit: UnitId, *, evicted: bool = False) -> list[UnitId]:
        """Take out a page and all that go on from it; return them, each after those that go on from it.

        `evicted`: for want of room, so that it was a mistake if it is asked for again soon.
        """
        order = [unit]
        for above in order:
            order.extend(self._nodes[above].children)
        parent = self._nodes[unit].parent
        if parent != ROOT:
            del self._nodes[self._units[parent]].children[unit]
        for one in reversed(order):
            self.used(one)
            node = self._nodes.pop(one)
            del self._units[node.key]
            if evicted:
                self._policy.evict(node.key)
            else:
                self._policy.remove(node.key)
                self.proof.remove(node.key)
        return order[::-1]

    def idle(self, *units: UnitId) -> None:
        """Hear that nobody but the index owns the units any more. Of pages let go together, tails come first."""
        fresh: list[PageKey] = []
        for unit in units:
            node = self._nodes[unit]
            if not node.idle:
                node.idle = True
                fresh.append(node.key)
            if node.parent != ROOT and self._nodes[self._units[node.parent]].idle:
                self._policy.insert(*fresh)
                self._policy.touch(*self._idle_above(node))
                self._count_idle(len(fresh))
                fresh = []
        self._policy.insert(*fresh)
        self._count_idle(len(fresh))

    def _count_idle(self, pages: int) -> None:
        self.idle_pages += pages
        self.version += pages > 0

    def _idle_above(self, node: Node) -> Iterator[PageKey]:
        """Yield the idle pages before one, up to the first that is not: that touches what is above it later."""
        while node.parent != ROOT:
            node = self._nodes[self._units[node.parent]]
            if not node.idle:
                return
            yield node.key

    def used(self, *units: UnitId) -> None:
        """Hear that somebody else owns the units too; one that is not here is ignored."""
        lent = [node for unit in units if (node := self._nodes.get(unit)) and node.idle]
        for node in lent:
            node.idle = False
        self.idle_pages -= len(lent)
        self._policy.lend(*(node.key for node in lent))

    def touch(self, prefix: Sequence[UnitId]) -> None:
        """A prefix, given from its head, was asked for."""
        self._policy.touch(*(self._nodes[unit].key for unit in reversed(prefix)))

    def is_idle(self, unit: UnitId) -> bool:
        """Whether the unit is here and nobody else owns it."""
        return unit in self._nodes and self._nodes[unit].idle

    def idle_order(self) -> list[UnitId]:
        """Return the idle pages, the first to go first."""
        return [self._units[key] for key in self._policy.victims(len(self._nodes), lambda _: True)]

    def first_to_go(self, allowed: Allowed[UnitId]) -> list[UnitId]:
        """Return the idle page to give up first, of those allowed, none if there is none.

        Prefixes go tail by tail: where the policy names a page that others go on from, one of those goes first, as it
        is worth nothing without it. A head before its tail only if every tail is owned by somebody or not allowed: then
        `remove` takes those out too.
        """
        units, nodes = self._units, self._nodes
        first = self._policy.victims(1, lambda key: allowed(units[key]))
        if first and (tails := self._tail_of(units[first[0]], allowed)):
            return tails
        tail = self._policy.victims(1, lambda key: not nodes[units[key]].children and allowed(units[key]))
        return [units[key] for key in tail or first] or self._unranked(allowed)

    def _tail_of(self, unit: UnitId, allowed: Allowed[UnitId]) -> list[UnitId]:
        """Return a page that goes on from this one, or itself, that nobody goes on from and that may go."""
        rest = [unit]
        while rest:
            one = rest.pop()
            node = self._nodes[one]
            if not node.children and node.idle and allowed(one):
                return [one]
            rest.extend(node.children)
        return []

    def reclaim(self, count: int, allowed: Allowed[UnitId]) -> list[UnitId]:
        """Take out at most `count` idle pages of those allowed, in the order of `first_to_go`; return them."""
        gone: list[UnitId] = []
        units = self._units
        while len(gone) < count:
            named = self._policy.victims(count - len(gone), lambda key: allowed(units[key]))
            taken: list[PageKey] = []
            for key in named:
                while key in units and len(gone) < count and (tail := self._tail_of(units[key], allowed)):
                    most = count - len(gone)
                    taken += self._take_up(tail[0], units[key], most, allowed, gone)
            self._policy.evict(*taken)
            if len(gone) < count and not any(key not in units for key in named):
                first = self.first_to_go(allowed)
                if not first:
                    break
                gone += self.remove(first[0], evicted=True)
        return gone

    def _take_up(
        self, tail: UnitId, head: UnitId, most: int, allowed: Allowed[UnitId], gone: list[UnitId]
    ) -> list[PageKey]:
        """Take a tail out of the tree, then what is a tail then, up to a head of it; return at most so many keys."""
        taken: list[PageKey] = []
        one = tail
        while len(taken) < most:
            node = self._nodes[one]
            if node.children or not node.idle or not allowed(one):
                break
            del self._nodes[one], self._units[node.key]
            self.idle_pages -= 1
            taken.append(node.key)
            gone.append(one)
            if node.parent == ROOT:
                break
            above = self._units[node.parent]
            del self._nodes[above].children[one]
            if one == head:
                break
            one = above
        return taken

    def _unranked(self, allowed: Allowed[UnitId]) -> list[UnitId]:
        """Under a policy that has no victims: the page that came last, so tails first."""
        return next(([unit] for unit in reversed(self._nodes) if self.is_idle(unit) and allowed(unit)), [])

    def check(self) -> None:
        """Assert that the tree is whole and the idle pages are counted."""
        assert {unit: node.key for unit, node in self._nodes.items()} == {
            unit: key for key, unit in self._units.items()
        }, "prefix index: keys and units do not match"
        for unit, node in self._nodes.items():
            assert node.parent == ROOT or node.parent in self._units, f"unit {unit}: its prefix is gone"
            for child in node.children:
                assert self._nodes[child].parent == node.key, f"unit {child} does not go on from {unit}"
        children = sum(len(node.children) for node in self._nodes.values())
        inner = sum(node.parent != ROOT for node in self._nodes.values())
        assert children == inner, "prefix index: a page is missing below the page before it"
        idle = [unit for unit, node in self._nodes.items() if node.idle]
        assert len(idle) == self.idle_pages, "prefix index: idle pages do not add up"
        ranked = self._policy.victims(len(self._nodes) + 1, lambda _: True)
        keys = sorted(self._nodes[unit].key for unit in idle)
        assert self._policy.name == "none" or sorted(ranked) == keys, (
            "prefix index: the policy ranks other pages"
        )
