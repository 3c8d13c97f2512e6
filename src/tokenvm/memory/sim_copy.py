"""One simulated copy: which bytes it reads and writes, and how it is carried out in plain Python."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tokenvm.memory.backend import Check, Copies, Kind, Program, Status
from tokenvm.memory.codec import Bytes, Codec
from tokenvm.memory.cpu import bytes_at, crc32c
from tokenvm.memory.layout import ALIGNMENT_BYTES
from tokenvm.memory.packing import Packing
from tokenvm.vocab import Answer

MEMORY = -1
"""The space of addresses; any other space is an open file."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GONE = (
    errno.EBADF,
    errno.EROFS,
    errno.EPERM,
    errno.EACCES,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENXIO,
)


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


class SimOutcome(NamedTuple):
    """One row of `CopyResult`."""

    status: Status
    checksum: int = 0
    packed: bool = False


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
    packed: bool
    far_bytes: int
    tail: int

    @property
    def _near(self) -> Extent:
        return Extent(MEMORY, self.address, self.address + self.nbytes)

    @property
    def _far(self) -> Extent:
        space = self.fd if self.kind in (Kind.READ, Kind.WRITE) else MEMORY
        return Extent(space, self.place, self.place + self.far_bytes)  # tails meet where these do

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

    def carry_out(self, codec: Codec) -> SimOutcome:
        """Move the bytes, and check them as `Check` says."""
        if self._far.space == MEMORY:
            ctypes.memmove(self.destination.begin, self.source.begin, self.nbytes)
            return self._checked(self._part, self._part, packed=False)
        stored = _aligned(self.far_bytes)
        if self.kind & 1:
            packed = self.packed and codec.encode(self._part, stored) is Answer.HIT
            status = self._move([(self.place, stored)] if packed else self._pieces)
            held = stored if packed else self._part
            return self._checked(self._part, held, packed) if status is Status.LANDED else SimOutcome(status)
        status = self._move([(self.place, stored)] if self.packed else self._pieces)
        if status is not Status.LANDED:
            return SimOutcome(status)
        outcome = self._checked(stored if self.packed else self._part, self._part, self.packed)
        return self._unpacked(outcome, stored, codec) if self.packed else outcome

    @property
    def _part(self) -> Bytes:
        return bytes_at(self.address, self.nbytes)

    @property
    def _pieces(self) -> list[tuple[int, Bytes]]:
        """The part as it is, in one place or two."""
        pieces = [(self.place, self._part[: self.far_bytes]), (self.tail, self._part[self.far_bytes :])]
        return [piece for piece in pieces if len(piece[1])]

    def _checked(self, source: Bytes, target: Bytes, packed: bool) -> SimOutcome:
        if self.check == Check.NONE:
            return SimOutcome(Status.LANDED, 0, packed)
        found = _crc32c(source)
        if self.check != Check.COMPUTE and found != self.checksum:
            return SimOutcome(Status.DAMAGED, found, packed)
        reported = target if self.kind & 1 else source
        return SimOutcome(Status.LANDED, _crc32c(reported), packed)

    def _unpacked(self, outcome: SimOutcome, stored: Bytes, codec: Codec) -> SimOutcome:
        if outcome.status is not Status.LANDED:
            return outcome
        if codec.decode(stored, self._part) is not Answer.HIT:
            return outcome._replace(status=Status.DAMAGED)
        return outcome._replace(checksum=_crc32c(self._part)) if self.check == Check.RENEW else outcome

    def _move(self, pieces: list[tuple[int, Bytes]]) -> Status:
        call = os.pwritev if self.kind & 1 else os.preadv
        try:
            whole = all(call(self.fd, [memory.data], place) == memory.size for place, memory in pieces)
        except OSError as error:
            if error.errno in _NO_SPACE:
                return Status.NO_SPACE
            return Status.GONE if error.errno in _GONE else Status.FAILED
        return Status.LANDED if whole else Status.SHORT


def _aligned(nbytes: int) -> Bytes:
    """Memory that direct I/O can use."""
    memory = np.empty(nbytes + ALIGNMENT_BYTES, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[begin : begin + nbytes]


def _crc32c(data: Bytes) -> int:
    return crc32c(data.ctypes.data, data.size)


def rows_of_copies(c: Copies) -> Iterator[SimCopy]:
    """Yield the rows of a batch."""
    columns = (c.kind, c.check, c.fd, c.place, c.address, c.nbytes, c.checksum)
    packing = (c.packing or Packing.none(c.nbytes)).columns
    for row in zip(*(column.tolist() for column in (*columns, *packing)), strict=True):
        kind, check, fd, place, address, nbytes, checksum, packed, far_bytes, tail = row
        yield SimCopy(
            Kind(kind),
            Check(check),
            fd,
            place,
            address,
            nbytes,
            checksum,
            bool(packed),
            far_bytes,
            tail,
        )


def rows_of_program(p: Program) -> Iterator[SimCopy]:
    """Yield the rows of a program, with no near side yet."""
    nowhere = np.zeros(len(p), np.uint64)
    return rows_of_copies(Copies(p.kind, p.check, p.fd, p.place, nowhere, p.nbytes, p.checksum, p.packing))
