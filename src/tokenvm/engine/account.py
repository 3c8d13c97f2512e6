"""What the engine did, in numbers: hits by tier, streamed pages, how much copying hid under compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tokenvm.clock import Clock
from tokenvm.engine.wear import Wear
from tokenvm.metrics import overlap
from tokenvm.residency.ledger import Ledger
from tokenvm.residency.prefix_plan import Rates
from tokenvm.schedule.plan import Plan
from tokenvm.staging import Staged
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Tier

_NAMES: Final[Mapping[Tier, str]] = {Tier.DEVICE: "device", Tier.HOST: "host", Tier.DISK: "disk"}


class Account:
    """Counters since birth (or the last `restart`), fed once a step."""

    def __init__(self, vm: MemoryManager, clock: Clock) -> None:
        self._vm = vm
        self._clock = clock
        self._wear = Wear(clock.now_s())
        self.restart()

    def restart(self) -> None:
        """Forget everything counted so far; bytes count from here."""
        self.steps = 0
        self.streamed_pages = 0
        self.hits = dict.fromkeys(Tier, 0)
        self.lost_pages = 0
        self.prefill_tokens = 0
        self.prefill_s = 0.0
        self.both_s = self.copy_s = self.compute_s = self.hideable_s = 0.0
        self._moved_before = dict(self._vm.moved_bytes)
        self._vm.backend.drain_intervals(outward=False)

    def step(self, plan: Plan, staged: Staged, begin_s: float, end_s: float) -> None:
        """Enter one step that ran from `begin_s` to `end_s`."""
        self.steps += 1
        self.streamed_pages += staged.streamed_pages
        self.lost_pages += len(staged.lost)
        for tier, count in staged.tiers.items():
            self.hits[tier] += count
            self._vm.watch.streamed(tier, count - staged.unread[tier])
        if not plan.decodes:
            self.prefill_tokens += plan.tokens
            self.prefill_s += end_s - begin_s
        copies = self._vm.backend.drain_intervals(outward=False)
        if len(copies):
            self._enter(copies, _without(begin_s, end_s, staged.waits))
        else:
            self.compute_s += end_s - begin_s - sum(b - a for a, b in staged.waits)

    def _enter(self, copies: NDArray[np.float64], computes: NDArray[np.float64]) -> None:
        measured = overlap(copies, computes)
        self.both_s += measured.both_s
        self.copy_s += measured.copy_s
        self.compute_s += measured.compute_s
        self.hideable_s += min(measured.copy_s, measured.compute_s)

    @property
    def rates(self) -> Rates:
        """How fast pages come from below and prompts are computed, as far as both were seen."""
        moved = self.moved_bytes
        read = (moved["nvme_read"] + moved["h2d"]) / self.copy_s if self.copy_s else 0.0
        return Rates(read, self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0)

    @property
    def moved_bytes(self) -> dict[str, int]:
        """Bytes landed since the last restart, by direction."""
        return {name: count - self._moved_before[name] for name, count in self._vm.moved_bytes.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        ledger = self._vm.ledger
        return {
            "tiers": {name: self._tier(tier, ledger) for tier, name in _NAMES.items()},
            "moved_bytes": self.moved_bytes,
            "nvme_written_last_day_bytes": self._wear.last_day_bytes(
                self._clock.now_s(), self._vm.moved_bytes["nvme_write"]
            ),
            "streamed_pages": self.streamed_pages,
            "overlap_ratio": self.both_s / self.copy_s if self.copy_s else 0.0,
            "hidden_ratio": self.both_s / self.hideable_s if self.hideable_s else 0.0,
            "steps": self.steps,
            "ring_bytes": self._vm.ring.slots * self._vm.ring.stride,
        }

    def _tier(self, tier: Tier, ledger: Ledger) -> dict[str, Any]:
        page = self._vm.layout.page_bytes
        seen = sum(self.hits.values()) + self.lost_pages
        faster = sum(count for other, count in self.hits.items() if other < tier)
        return {
            "capacity_bytes": ledger.capacity(tier) * page,
            "used_bytes": ledger.used(tier) * page,
            "high_water_bytes": self._vm.high_water_bytes(tier),
            "hits": self.hits[tier],
            "misses": seen - faster - self.hits[tier],
            **({} if tier is Tier.DEVICE else self._vm.watch.as_dict(tier)),
        }


def _without(begin_s: float, end_s: float, waits: list[tuple[float, float]]) -> NDArray[np.float64]:
    """Return the intervals of [begin, end] outside the waits, which are ascending and disjoint."""
    edges = [begin_s, *(edge for wait in waits for edge in wait), end_s]
    return np.array(edges, np.float64).reshape(-1, 2)
