"""What a device can do, as protocols: lend memory, carry out copies, run a staging ring.

Addresses are plain integers. A copy has a near side (`address`, in memory or on the device) and a far side
(`place`: a file offset, or an address in the lower tier).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenvm.memory.codec import Codec
from tokenvm.memory.packing import Packing, Rows
from tokenvm.vocab import Answer


class Kind(enum.IntEnum):
    """What a copy does. The low bit is its direction: 0 toward the device, 1 away from it."""

    READ = 0
    WRITE = 1
    COPY_IN = 2
    COPY_OUT = 3


OUTWARD = 1
"""`kind | OUTWARD` is the copy that goes back where `kind` came from."""


class Check(enum.IntEnum):
    """What is done with the CRC-32C of a part's bytes, as they are stored in source and target.

    COMPUTE reports the target's. VERIFY compares the source's, and reports the target's of a write, the source's
    of a read. RENEW compares the source's and reports the target's, which is another where one of them packs.
    """

    NONE = 0
    COMPUTE = 1
    VERIFY = 2
    RENEW = 3


class Status(enum.IntEnum):
    """How a copy ended. A destination in memory whose copy did not land is filled with 0xFF."""

    QUEUED = 0
    LANDED = 1
    SHORT = 2
    DAMAGED = 3
    NO_SPACE = 4
    FAILED = 5
    DROPPED = 6
    GONE = 7


MOVED_NAMES: Final[Mapping[Kind, str]] = {
    Kind.READ: "nvme_read",
    Kind.WRITE: "nvme_write",
    Kind.COPY_IN: "h2d",
    Kind.COPY_OUT: "d2h",
}
"""The public name of each kind's byte counter. A read that ends on the device counts as `nvme_read` alone."""


@dataclass(frozen=True, slots=True)
class Program:
    """Columns of n inward copies, in order, whose near side the ring chooses. No `packing`: see `Packing.none`."""

    kind: NDArray[np.uint8]
    check: NDArray[np.uint8]
    fd: NDArray[np.int32]
    place: NDArray[np.uint64]
    nbytes: NDArray[np.uint64]
    checksum: NDArray[np.uint32]
    packing: Packing | None = None

    def __len__(self) -> int:
        return len(self.kind)

    def rows(self, rows: Rows) -> Program:
        """Return some of its copies; those of a slice as views."""
        return Program(
            self.kind[rows],
            self.check[rows],
            self.fd[rows],
            self.place[rows],
            self.nbytes[rows],
            self.checksum[rows],
            self.packing and self.packing.rows(rows),
        )


@dataclass(frozen=True, slots=True)
class Copies:
    """Columns of n copies. Neighbours that continue one another in a file are carried out as one call.

    No `packing`: see `Packing.none`.
    """

    kind: NDArray[np.uint8]
    check: NDArray[np.uint8]
    fd: NDArray[np.int32]
    place: NDArray[np.uint64]
    address: NDArray[np.uint64]
    nbytes: NDArray[np.uint64]
    checksum: NDArray[np.uint32]
    packing: Packing | None = None

    def __len__(self) -> int:
        return len(self.kind)

    def rows(self, rows: Rows) -> Copies:
        """Return some of them; those of a slice as views."""
        return Copies(
            self.kind[rows],
            self.check[rows],
            self.fd[rows],
            self.place[rows],
            self.address[rows],
            self.nbytes[rows],
            self.checksum[rows],
            self.packing and self.packing.rows(rows),
        )


@dataclass(frozen=True, slots=True)
class CopyResult:
    """Per copy one `Status`, one CRC-32C (0 where none was computed), and whether it is stored packed (0 or 1).

    Of which bytes the checksum is, `Check` says.
    """

    status: NDArray[np.uint8]
    checksums: NDArray[np.uint32]
    packed: NDArray[np.uint8]


class Region(Protocol):
    """Memory of a device: 4 KiB aligned, zero-filled, committed when first touched."""

    @property
    def address(self) -> int:
        """Where it begins."""
        ...

    @property
    def nbytes(self) -> int:
        """How long it is; never 0."""
        ...

    def close(self) -> None:
        """Give the memory back. Nothing may point into it any more; idempotent."""
        ...


class Batch(Protocol):
    """Copies that were submitted together."""

    def poll(self) -> Answer:
        """IN_FLIGHT, HIT when all landed, MISS when all ended and some did not land."""
        ...

    def wait(self) -> Answer:
        """Make the batch urgent, block until it ended, and answer HIT or MISS."""
        ...

    def result(self) -> CopyResult:
        """Wait, and say how each copy ended. To be called once at least: it frees the batch.

        Every call gives the same answer, also after one that an exception cut short.
        """
        ...


class CopyEngine(Protocol):
    """Carries out batches of copies; no order is promised between any two of them."""

    def submit(self, copies: Copies, urgent: bool) -> Batch:
        """Start copies. Sources stay as they are, and destinations untouched, until the batch ended."""
        ...


class Ring(Protocol):
    """The staging ring. Ticket t lands at `base + (t % slots) * stride`, once t - slots was released.

    Tickets are one ascending sequence; copies start strictly in their order. One consumer calls all of this.
    """

    @property
    def slots(self) -> int:
        """How many tickets may be unreleased at once."""
        ...

    @property
    def stride(self) -> int:
        """Bytes of a slot."""
        ...

    def submit(self, program: Program) -> int:
        """Queue a program behind the ones before it; the first ticket. Its files and sources stay valid."""
        ...

    def wait(self, ticket_end: int) -> Answer:
        """Block until all tickets before `ticket_end` ended. MISS: an unreleased one failed or is gone."""
        ...

    def addresses(self, begin: int, end: int) -> NDArray[np.uint64]:
        """Where the tickets of [begin, end) land."""
        ...

    def release(self, ticket_end: int) -> None:
        """Give back the slots of all tickets before `ticket_end`; they must have ended."""
        ...

    def failed(self, begin: int, end: int) -> NDArray[np.uint64]:
        """Tickets of [begin, end) that did not land, ascending. Remembered until `cancel`."""
        ...

    def statuses(self, begin: int, end: int) -> NDArray[np.uint8]:
        """How those that `failed` names ended, in the same order: a `Status` each."""
        ...

    def cancel(self) -> None:
        """Drop what has not started, wait for what is in flight, take every credit back, forget failures."""
        ...


class DeviceBackend(Protocol):
    """One device: where its memory comes from and what moves bytes to and from it."""

    @property
    def name(self) -> str:
        """A word for messages."""
        ...

    def allocate(self, nbytes: int) -> Region:
        """Lend at least `nbytes`; StorageError where there is no such room."""
        ...

    def use(self, codec: Codec) -> None:
        """Say what packs parts, before the first packed copy."""
        ...

    def copies(self) -> CopyEngine:
        """Return the engine for batches; always the same one."""
        ...

    def ring(self, base: int, slots: int, stride: int) -> Ring:
        """Make a ring over `slots * stride` bytes at `base`, which must outlive it."""
        ...

    def fill(self, address: int, byte: int, nbytes: int) -> None:
        """Set every byte of a range."""
        ...

    def reading(self, addresses: NDArray[np.uint64]) -> None:
        """Say that a kernel reads at these addresses now. A simulated device checks that they have landed."""
        ...

    def writing(self, addresses: NDArray[np.uint64]) -> None:
        """Say that a kernel writes at these addresses now. A simulated device checks that no copy does."""
        ...

    def moved_bytes(self) -> dict[str, int]:
        """Landed bytes since birth: `nvme_read`, `nvme_write`, `h2d`, `d2h`."""
        ...

    def drain_intervals(self, outward: bool) -> NDArray[np.float64]:
        """When some copy in that direction was in flight, since last asked: (begin, end), [n, 2].

        In seconds of the monotonic clock.
        """
        ...

    def close(self) -> None:
        """Drop what has not started, wait for the rest, stop. Rings and batches answer MISS from then on."""
        ...
