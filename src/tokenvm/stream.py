"""What a step streams, and the feeding of it through the ring, also ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from tokenvm.memory.backend import Program
from tokenvm.vm import MemoryManager
from tokenvm.vocab import UnitId


@dataclass(frozen=True, slots=True)
class Reads:
    """The parts that a step streams: of these units, in this order, layer by layer."""

    units: tuple[UnitId, ...]
    program: Program

    @classmethod
    def of(cls, units: Sequence[UnitId], vm: MemoryManager) -> Self:
        """Read each unit from its fastest copy below the device."""
        return cls(tuple(units), vm.program(units))

    def same(self, other: Reads) -> bool:
        """Whether the other reads the same bytes from the same places."""
        ours, theirs = self.program, other.program
        return self.units == other.units and all(
            np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("fd", "place", "checksum")
        )


class Stream:
    """Feeds reads through the ring: this step's and, ahead of time, those expected of the next.

    `ahead`: how many layers early parts are read, 0 for not before they are needed, None for as far as the ring goes.
    """

    def __init__(self, vm: MemoryManager, ahead: int | None = None) -> None:
        self._vm = vm
        self._ahead = ahead
        self._reads: Reads | None = None
        self._queued: tuple[Reads, int] | None = None
        self._idle = True
        self._layers_submitted = 0

    def begin(self, reads: Reads, expected: Reads | None) -> int:
        """Start this step's reads, or go on with those queued if they are the same; return the first ticket.

        `expected` reads are queued behind them for the next step.
        """
        if self._queued is not None and self._queued[0].same(reads):
            first = self._queued[1]
        else:
            self.cancel()
            first = self._submit(reads)
        self._reads, self._queued = reads, None
        if expected is not None and expected.units and self._ahead is None:
            self._queued = expected, self._vm.ring.submit(expected.program)
            self._idle = False
        return first

    def reach(self, layer: int) -> None:
        """Layer `layer` is about to be attended: submit what may be read by now."""
        reads = self._reads
        assert reads is not None, "Stream.reach before begin"
        if self._ahead is None or not reads.units:
            return
        end = min(self._vm.layout.layers, layer + 1 + self._ahead)
        while self._layers_submitted < end:
            self._vm.ring.submit(_layer_of(reads, self._layers_submitted))
            self._layers_submitted += 1

    def cancel(self) -> None:
        """Drop every read that nobody will wait for."""
        if not self._idle:
            self._vm.ring.cancel()
        self._reads, self._queued, self._idle = None, None, True

    def _submit(self, reads: Reads) -> int:
        if not reads.units:
            return 0
        self._idle = False
        if self._ahead is None:
            return self._vm.ring.submit(reads.program)
        self._layers_submitted = 1
        return self._vm.ring.submit(_layer_of(reads, 0))


def _layer_of(reads: Reads, layer: int) -> Program:
    count = len(reads.units)
    return reads.program.rows(slice(layer * count, (layer + 1) * count))
