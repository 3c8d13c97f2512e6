"""One simulated copy: which bytes it reads and writes, and how it is carried out in plain Python."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tokenvm.memory.backend import Check, Copies, Kind, Program, Status
from tokenvm.memory.cpu import crc32c

MEMORY = -1
"""The space of addresses; any other space is an open file."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SimFault(AssertionError):  # noqa: N818 - the word for it, like a page fault
    """Somebody used bytes that a copy may still be writing, or wrote bytes that one may still be reading."""


class Extent(NamedTuple):
    """Bytes [begin, end) of a space."""

    space: int
    begin: int
    end: int

    def meets(self, other: Extent) -> bool:
        """Say whether the two share a byte."""
        return self.space == other.space and self.begin < other.end and other.begin < self.end


@dataclass(frozen=True, slots=True)
class SimCopy:
    """One row of `Copies`."""

    kind: Kind
    check: Check
    fd: int
    place: int
    address: int
    nbytes: int
    checksum: int

    @property
    def _near(self) -> Extent:
        return Extent(MEMORY, self.address, self.address + self.nbytes)

    @property
    def _far(self) -> Extent:
        space = self.fd if self.kind in (Kind.READ, Kind.WRITE) else MEMORY
        return Extent(space, self.place, self.place + self.nbytes)

    @property
    def source(self) -> Extent:
        """What it reads."""
        return self._near if self.kind & 1 else self._far

    @property
    def destination(self) -> Extent:
        """What it writes."""
        return self._far if self.kind & 1 else self._near

    def poison(self) -> None:
        """Fill a destination in memory with 0xFF: nobody may count on what was there."""
        if self.destination.space == MEMORY:
            ctypes.memset(self.destination.begin, 0xFF, self.nbytes)

    def carry_out(self) -> tuple[Status, int]:
        """Move the bytes; the status and the CRC-32C of the near side (0 if none was asked for)."""
        status = self._move()
        if status is not Status.LANDED or self.check == Check.NONE:
            return status, 0
        checksum = crc32c(self.address, self.nbytes)
        damaged = self.check == Check.VERIFY and checksum != self.checksum
        return (Status.DAMAGED if damaged else Status.LANDED), checksum

    def _move(self) -> Status:
        if self.source.space == MEMORY and self.destination.space == MEMORY:
            ctypes.memmove(self.destination.begin, self.source.begin, self.nbytes)
            return Status.LANDED
        near = (ctypes.c_uint8 * self.nbytes).from_address(self.address)
        try:
            moved = (os.pwritev if self.kind & 1 else os.preadv)(self.fd, [near], self.place)
        except OSError as error:
            return Status.NO_SPACE if error.errno in _NO_SPACE else Status.FAILED
        return Status.LANDED if moved == self.nbytes else Status.SHORT


def rows_of_copies(c: Copies) -> Iterator[SimCopy]:
    """Yield the rows of a batch."""
    columns = (c.kind, c.check, c.fd, c.place, c.address, c.nbytes, c.checksum)
    for kind, check, *rest in zip(*(column.tolist() for column in columns), strict=True):
        yield SimCopy(Kind(kind), Check(check), *rest)


def rows_of_program(p: Program) -> Iterator[SimCopy]:
    """Yield the rows of a program, with no near side yet."""
    columns = (p.kind, p.check, p.fd, p.place, p.nbytes, p.checksum)
    for kind, check, fd, place, nbytes, checksum in zip(*(c.tolist() for c in columns), strict=True):
        yield SimCopy(Kind(kind), Check(check), fd, place, 0, nbytes, checksum)
