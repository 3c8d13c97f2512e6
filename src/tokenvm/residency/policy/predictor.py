"""Keeps what is likeliest to be used soon, by classes of requests and of units."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic

from tokenvm.residency.policy.base import Allowed, K
from tokenvm.residency.policy.hazard import BUCKETS, FIRST, ReturnTimes, bucket_of, worth

CONTINUING: Final = 0.5
"""A request continues a session if it begins with this share of it, or more, that was asked for before."""
SHORT_UNITS: Final = 4
"""A request that adds no more than so many units is a short one, such as the result of a tool."""
REQUEST_CLASSES: Final = 4
CLASSES: Final = 2 * REQUEST_CLASSES
GHOSTS: Final = 8
MOST_REMEMBERED: Final = 1 << 17
"""So many times as many units as there is room for are remembered after they left, and no more than this."""
FADE: Final = 0.8
EPOCH: Final = 4096
"""After so many uses the ranks are made anew, and what was seen before counts less by `FADE`."""
NEVER: Final = float("inf")


@dataclass(slots=True, eq=False)
class Burst(Generic[K]):
    """Uses of units of one class, so close together that they count as one; `units` are those that were not used since.

    Tails stand before heads, as they were used.
    """

    group: int
    at: int
    epoch: int
    units: dict[K, None] = field(default_factory=dict)


class Predictor(Generic[K]):
    """Gives up what is worth least, by how soon units of its class and age have come back so far.

    A unit's class says whether the request that used it last began a session or continued one, whether that added much,
    and whether the unit had been used before. Within a class, what was used longest ago goes first.

    After Wang and others, "KVCache in the wild" (USENIX ATC 2025), who rank by category of request and an exponential
    law; here the law is a life table, and the rank what a place earns.
    """

    name = "predictor"

    def __init__(self) -> None:
        self._groups: list[deque[Burst[K]]] = [deque() for _ in range(CLASSES)]
        self._here: dict[K, Burst[K]] = {}  # also those that are lent, which stand in no burst
        self._ghosts: OrderedDict[K, Burst[K]] = OrderedDict()
        self._asked: OrderedDict[K, int] = OrderedDict()  # the class of the request
        self._times = [ReturnTimes() for _ in range(CLASSES)]
        self._worth = [[1.0 / (group + 1)] * BUCKETS for group in range(CLASSES)]
        self._now = 0
        self._epoch = 0
        self._room = 0

    @property
    def ruling(self) -> str:
        """See `Policy.ruling`."""
        return self.name

    def resize(self, units: int) -> None:
        """See `Policy.resize`."""
        self._room = units

    def visit(self, units: Sequence[K]) -> None:
        """See `Policy.visit`."""
        known = 0
        for unit in units:
            if unit not in self._here and unit not in self._ghosts:
                break
            known += 1
        continues = known > 0 and known >= CONTINUING * len(units)
        request = 2 * continues + (len(units) - known <= SHORT_UNITS)
        self._asked.update(dict.fromkeys(units, request))
        while len(self._asked) > MOST_REMEMBERED:
            self._asked.popitem(last=False)

    def extend(self, unit: K, after: K) -> None:
        """See `Policy.extend`: an answer is of the class of its request."""
        if after in self._asked:
            self._asked[unit] = self._asked[after]
        elif after in self._here:
            self._asked[unit] = self._here[after].group % REQUEST_CLASSES

    def insert(self, *units: K) -> None:
        """See `Policy.insert`."""
        here, ghosts, asked = self._here, self._ghosts, self._asked
        now = self._now = self._now + len(units)
        bursts: dict[int, Burst[K]] = {}
        begun = [0] * CLASSES
        ended: dict[Burst[K], int] = {}
        for unit in units:
            group = asked.pop(unit, 0)
            old = here.get(unit)
            if old is not None:
                old.units.pop(unit, None)
            else:
                old = ghosts.pop(unit, None)
            if old is not None:
                ended[old] = ended.get(old, 0) + 1
                group += REQUEST_CLASSES
            burst = bursts.get(group)
            if burst is None:
                burst = bursts[group] = self._burst(group)
            begun[group] += 1
            burst.units[unit] = None
            here[unit] = burst
        for group in bursts:
            self._times[group].begin(self._epoch, begun[group])
        for old, count in ended.items():
            self._times[old.group].end(old.epoch, now - old.at, count, returned=True)
        if now >= (self._epoch + 1) * EPOCH:
            self._learn()

    def touch(self, *units: K) -> None:
        """See `Policy.touch`."""
        self.insert(*(unit for unit in units if unit in self._here and unit in self._here[unit].units))

    def lend(self, *units: K) -> None:
        """See `Policy.lend`."""
        for unit in units:
            if unit in self._here:
                self._here[unit].units.pop(unit, None)

    def evict(self, *units: K) -> None:
        """See `Policy.evict`."""
        here, ghosts = self._here, self._ghosts
        most = min(GHOSTS * (self._room or len(here)), MOST_REMEMBERED)
        for unit in units:
            burst = here.pop(unit, None)
            if burst is not None:
                burst.units.pop(unit, None)
                ghosts[unit] = burst
        ended: dict[Burst[K], int] = {}
        while len(ghosts) > most:
            _, old = ghosts.popitem(last=False)
            ended[old] = ended.get(old, 0) + 1
        for old, count in ended.items():
            self._times[old.group].end(old.epoch, self._now - old.at, count, returned=False)

    def remove(self, *units: K) -> None:
        """See `Policy.remove`."""
        for unit in units:
            burst = self._here.pop(unit, None)
            if burst is not None:
                burst.units.pop(unit, None)
                self._times[burst.group].end(burst.epoch, self._now - burst.at, 1, returned=False)

    def victims(self, count: int, allowed: Allowed[K]) -> list[K]:
        """See `Policy.victims`."""
        queues = [self._bursts(group) for group in self._groups]
        heads = [next(queue, None) for queue in queues]
        worths = [self._worth_of(head) for head in heads]
        chosen: list[K] = []
        while len(chosen) < count and (least := min(worths)) < NEVER:
            group = worths.index(least)
            head = heads[group]
            assert head is not None
            chosen += filter(allowed, head.units)
            heads[group] = next(queues[group], None)
            worths[group] = self._worth_of(heads[group])
        return chosen[:count]

    def _bursts(self, group: deque[Burst[K]]) -> Iterator[Burst[K]]:
        """Yield the bursts of a group that have units, the oldest first."""
        while group and not group[0].units:
            group.popleft()
        return (burst for burst in group if burst.units)

    def _burst(self, group: int) -> Burst[K]:
        """Return the burst that units used now belong to."""
        bursts = self._groups[group]
        if not bursts or self._now - bursts[-1].at >= FIRST or bursts[-1].epoch != self._epoch:
            bursts.append(Burst(group, self._now, self._epoch))
        return bursts[-1]

    def _worth_of(self, head: Burst[K] | None) -> float:
        return NEVER if head is None else self._worth[head.group][bucket_of(self._now - head.at)]

    def _learn(self) -> None:
        """At the end of an epoch: rank anew by all that was seen, what is recent most."""
        for group, times in enumerate(self._times):
            self._worth[group] = worth(times.hazards(self._epoch, EPOCH))
            times.fade(FADE)
        self._epoch = self._now // EPOCH
        self._groups = [deque(burst for burst in group if burst.units) for group in self._groups]
