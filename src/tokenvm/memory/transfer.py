"""Moves of whole pages between tiers, and programs that stream parts through the ring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenvm.memory.along import AlongBatch
from tokenvm.memory.backend import (
    OUTWARD,
    Batch,
    Check,
    Copies,
    CopyEngine,
    CopyResult,
    DeviceBackend,
    Kind,
    Program,
    Ring,
    Status,
)
from tokenvm.memory.packing import Packing
from tokenvm.memory.tier import Places, TierStore
from tokenvm.vocab import Answer, Move, Tier


@dataclass(frozen=True, slots=True)
class Lane:
    """Moves from one tier to another, as arrays; `index` is their place among all moves of the transfer."""

    source: TierStore
    target: TierStore
    index: NDArray[np.int64]
    source_slots: NDArray[np.int64]
    target_slots: NDArray[np.int64]

    def copies(self) -> Copies:
        """One copy per layer and page, layer by layer, so that neighbours in a slab continue one another."""
        layout = self.source.layout
        layers = np.arange(layout.layers)[:, None]
        source = self.source.places(self.source_slots[None, :], layers)
        target = self.target.places(self.target_slots[None, :], layers)
        kind, far, near = _sides(source, target, inward=self.target.tier < self.source.tier)
        n = kind.size
        return Copies(
            kind=kind.ravel(),
            check=np.full(n, self._check, np.uint8),
            fd=np.ascontiguousarray(far.fd).ravel(),
            place=far.place.ravel(),
            address=near.place.ravel(),
            nbytes=np.full(n, layout.part_stride, np.uint64),
            checksum=self.source.checksums[self.source_slots].T.ravel(),
            packing=self._packing(far),
        )

    @property
    def _check(self) -> Check:
        """Pages on the device are still written to, so they carry no checksum, and need none."""
        if self.source.tier is Tier.DEVICE:
            return Check.COMPUTE
        renewed = self.source.packs and self.target.tier is not Tier.DEVICE
        return Check.RENEW if renewed else Check.VERIFY

    def _packing(self, far: Places) -> Packing | None:
        if not (self.source.packs or self.target.packs):
            return None
        n = far.place.size
        packed = (
            np.ones(n, np.uint8) if self.target.packs else self.source.packed[self.source_slots].T.ravel()
        )
        return Packing(packed, np.full(n, far.far_bytes, np.uint64), far.tail.ravel())

    def settle(self, result: CopyResult, rows: slice) -> NDArray[np.int64]:
        """Record how the pages lie that landed whole; return the index of those that did not."""
        by_page = (self.source.layout.layers, len(self.index))
        landed = (result.status[rows].reshape(by_page) == Status.LANDED).all(axis=0)
        slots = self.target_slots[landed]
        self.target.checksums[slots] = result.checksums[rows].reshape(by_page).T[landed]
        if self.target.packs:
            self.target.packed[slots] = result.packed[rows].reshape(by_page).T[landed]
        return np.asarray(self.index[~landed])


def _sides(source: Places, target: Places, inward: bool) -> tuple[NDArray[np.uint8], Places, Places]:
    """(kind, far, near) of copies between two sets of places; a file is always the far side."""
    if bool((source.kind == Kind.READ).any()):
        return source.kind, source, target
    if inward:
        return source.kind, source, target
    return target.kind | np.uint8(OUTWARD), target, source


class Transfer:
    """Moves in flight. When it ended, checksums were recorded with every page that landed."""

    def __init__(self, moves: Sequence[Move], lanes: Sequence[Lane], batch: Batch) -> None:
        self.moves = tuple(moves)
        self._lanes = lanes
        self._batch = batch
        self._failed: tuple[Move, ...] | None = None

    def poll(self) -> Answer:
        """IN_FLIGHT, HIT when every page landed whole, MISS when some did not (see `failed`)."""
        if self._failed is None and self._batch.poll() is Answer.IN_FLIGHT:
            return Answer.IN_FLIGHT
        return self.wait()

    def wait(self) -> Answer:
        """Block until it ended; HIT or MISS."""
        return Answer.MISS if self.failed else Answer.HIT

    @property
    def failed(self) -> tuple[Move, ...]:
        """The moves that did not land whole; waits for the end. Their targets hold nothing.

        A wait that was cut short by an interrupt may be repeated: settling twice records the same.
        """
        if self._failed is None:
            self._failed = self._settle(self._batch.result())
        return self._failed

    def _settle(self, result: CopyResult) -> tuple[Move, ...]:
        failed: list[int] = []
        begin = 0
        for lane in self._lanes:
            end = begin + len(lane.index) * lane.source.layout.layers
            failed += lane.settle(result, slice(begin, end)).tolist()
            begin = end
        return tuple(self.moves[i] for i in sorted(failed))


class TransferEngine:
    """Moves pages between the stores of a backend; one owner. `ring` is needed to stream only.

    `copies` carries them out, the backend's own engine if not given.
    """

    def __init__(
        self,
        backend: DeviceBackend,
        stores: Mapping[Tier, TierStore],
        ring: Ring | None = None,
        copies: CopyEngine | None = None,
    ) -> None:
        self._backend = backend
        self._copies = copies or backend.copies()
        self._stores = stores
        self._ring = ring

    def submit(self, moves: Sequence[Move], urgent: bool = False) -> Transfer:
        """Start copying whole pages. Both slots of each move are left alone until the transfer ended.

        Pages from host or disk are verified against the checksums recorded when they landed there; a page
        from the device is checksummed on its way. StorageError where the target has no room; then nothing was
        started.
        """
        lanes = self._lanes(moves)
        for lane in lanes:
            lane.target.ensure(int(lane.target_slots.max()) + 1)
        batch = self._copies.submit(_join([lane.copies() for lane in lanes]), urgent)
        return Transfer(moves, lanes, batch)

    def submit_along(self, moves: Sequence[Move]) -> tuple[Transfer, AlongBatch]:
        """Prepare to copy whole pages down from the device, layer by layer as `AlongBatch.start` is told.

        Both slots of each move are left alone until the transfer ended, but for parts of layers not yet started.
        StorageError where the target has no room.
        """
        lanes = self._lanes(moves)
        for lane in lanes:
            lane.target.ensure(int(lane.target_slots.max()) + 1)
        widths = [len(lane.index) for lane in lanes]
        layers = self._stores[Tier.DEVICE].layout.layers
        copies = _join([lane.copies() for lane in lanes])
        batch = AlongBatch(self._copies, copies, widths, layers)
        return Transfer(moves, lanes, batch), batch

    def program(self, tiers: ArrayLike, slots: ArrayLike, layers: ArrayLike) -> Program:
        """Make the reads of n pages (tier and slot of each): layer by layer, pages in the given order.

        Its checksums are those recorded now: build it after the transfers that wrote the pages ended.
        """
        tier, slot = np.atleast_1d(np.asarray(tiers, np.int64)), np.atleast_1d(np.asarray(slots, np.int64))
        layer = np.atleast_1d(np.asarray(layers, np.int64))
        program = _blank_program(len(layer) * len(slot))
        if any(store.packs for store in self._stores.values()):
            program = replace(program, packing=_blank_packing(len(program)))
        for name in np.unique(tier).tolist():
            _fill_program(program, self._stores[Tier(name)], np.flatnonzero(tier == name), slot, layer)
        return program

    def read_again(self, reads: Program, addresses: NDArray[np.uint64]) -> CopyResult:
        """Read parts whose tickets failed once more, to where they should have landed; wait for it."""
        copies = Copies(
            kind=reads.kind,
            check=reads.check,
            fd=reads.fd,
            place=reads.place,
            address=addresses,
            nbytes=reads.nbytes,
            checksum=reads.checksum,
            packing=reads.packing,
        )
        return self._copies.submit(copies, urgent=True).result()

    def stream(self, program: Program) -> int:
        """Queue a program on the ring; return the ticket of its first part."""
        assert self._ring is not None, "TransferEngine.stream: made without a ring"
        return self._ring.submit(program)

    @property
    def moved_bytes(self) -> dict[str, int]:
        """Landed bytes, moves and streams together: `h2d`, `d2h`, `nvme_read`, `nvme_write`."""
        return self._backend.moved_bytes()

    def _lanes(self, moves: Sequence[Move]) -> list[Lane]:
        table = np.array(
            [(m.source, m.source_slot, m.target, m.target_slot) for m in moves], np.int64
        ).reshape(-1, 4)
        lanes = []
        for source, target in np.unique(table[:, [0, 2]], axis=0).tolist():
            index = np.flatnonzero((table[:, 0] == source) & (table[:, 2] == target))
            far_column = 1 if source == Tier.DISK else 3
            index = index[np.argsort(table[index, far_column], kind="stable")]
            stores = self._stores[Tier(source)], self._stores[Tier(target)]
            lanes.append(Lane(*stores, index, table[index, 1], table[index, 3]))
        return lanes


def _blank_program(n: int) -> Program:
    return Program(
        kind=np.empty(n, np.uint8),
        check=np.full(n, Check.VERIFY, np.uint8),
        fd=np.empty(n, np.int32),
        place=np.empty(n, np.uint64),
        nbytes=np.empty(n, np.uint64),
        checksum=np.empty(n, np.uint32),
    )


def _blank_packing(n: int) -> Packing:
    return Packing(np.empty(n, np.uint8), np.empty(n, np.uint64), np.empty(n, np.uint64))


def _fill_program(
    program: Program,
    store: TierStore,
    pages: NDArray[np.int64],
    slot: NDArray[np.int64],
    layer: NDArray[np.int64],
) -> None:
    """Write the columns [layer, page] of those `pages` that lie in one store."""
    assert store.tier != Tier.DEVICE, "TransferEngine.program: a page on the device needs no stream"
    shape = len(layer), len(slot)
    places = store.places(slot[pages][None, :], layer[:, None])
    program.kind.reshape(shape)[:, pages] = places.kind
    program.fd.reshape(shape)[:, pages] = places.fd
    program.place.reshape(shape)[:, pages] = places.place
    program.nbytes.reshape(shape)[:, pages] = store.layout.part_stride
    program.checksum.reshape(shape)[:, pages] = store.checksums[slot[pages]][:, layer].T
    if program.packing is not None:
        program.packing.packed.reshape(shape)[:, pages] = store.packed[slot[pages]][:, layer].T
        program.packing.far_bytes.reshape(shape)[:, pages] = places.far_bytes
        program.packing.tail.reshape(shape)[:, pages] = places.tail


def _join(parts: Sequence[Copies]) -> Copies:
    """Concatenate the columns of several sets of copies."""
    empty = _blank_program(0)
    parts = parts or [
        Copies(empty.kind, empty.check, empty.fd, empty.place, empty.place, empty.nbytes, empty.checksum)
    ]
    return Copies(
        kind=np.concatenate([p.kind for p in parts]),
        check=np.concatenate([p.check for p in parts]),
        fd=np.concatenate([p.fd for p in parts]),
        place=np.concatenate([p.place for p in parts]),
        address=np.concatenate([p.address for p in parts]),
        nbytes=np.concatenate([p.nbytes for p in parts]),
        checksum=np.concatenate([p.checksum for p in parts]),
        packing=_join_packing(parts),
    )


def _join_packing(parts: Sequence[Copies]) -> Packing | None:
    if all(p.packing is None for p in parts):
        return None
    packings = [p.packing or Packing.none(p.nbytes) for p in parts]
    return Packing(*map(np.concatenate, zip(*(packing.columns for packing in packings), strict=True)))
