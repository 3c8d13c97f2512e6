"""Parts that a codec packs on disk: the same bytes back by every way, raw where they do not fit, and damage is seen."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenvm.memory.backend import DeviceBackend
from tokenvm.memory.codec import CODECS, Bitpack, Codec, make_codec
from tokenvm.memory.cpu import CpuDevice, bytes_at, crc32c
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.host import HostPool
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.sim import SimDevice
from tokenvm.memory.tier import TierStore
from tokenvm.memory.transfer import TransferEngine
from tokenvm.vocab import Answer, Move, SlotId, Tier, UnitId

LAYOUT = PageLayout(layers=3, part_bytes=8 * 4096)
DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK
PAGES, RING_SLOTS = 6, 5
Bytes = NDArray[np.uint8]


def content_of(page: int, layer: int) -> Bytes:
    """Like KV, but noise in every part of page 2, and in one part of page 4."""
    rng = np.random.default_rng([page, layer])
    if page == 2 or (page, layer) == (4, 1):
        return rng.integers(0, 256, LAYOUT.part_stride, dtype=np.uint8)
    normal = rng.standard_normal(LAYOUT.part_stride // 2).astype(np.float32)
    return (normal.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


FITS = np.array([[page != 2 and (page, layer) != (4, 1) for layer in range(3)] for page in range(PAGES)])


class Rig:
    def __init__(self, backend: DeviceBackend, path: Path, codec: Codec, direct: bool = False) -> None:
        backend.use(codec)
        self.backend = backend
        self.arena = DeviceArena(backend, PAGES, LAYOUT)
        self.host = HostPool(backend, PAGES, LAYOUT)
        how = "auto" if direct else False
        self.disk = DiskStore(path, PAGES * LAYOUT.page_bytes, LAYOUT, how, slab_pages=4, codec=codec)
        self.stores: dict[Tier, TierStore] = {DEVICE: self.arena, HOST: self.host, DISK: self.disk}
        self.region = backend.allocate(RING_SLOTS * LAYOUT.part_stride)
        self.ring = backend.ring(self.region.address, RING_SLOTS, LAYOUT.part_stride)
        self.engine = TransferEngine(backend, self.stores, self.ring)
        for slot in range(PAGES):
            for layer in range(LAYOUT.layers):
                self.part(slot, layer)[:] = content_of(slot, layer)

    def part(self, slot: int, layer: int) -> Bytes:
        return bytes_at(self.arena.address(slot, layer), LAYOUT.part_stride)

    def move_all(self, source: Tier, target: Tier) -> tuple[Move, ...]:
        """Move page i to slot PAGES - 1 - i; the moves that failed."""
        slots = [(i, PAGES - 1 - i) for i in range(PAGES)]
        moves = [Move(UnitId(a), source, SlotId(a), target, SlotId(b)) for a, b in slots]
        return self.engine.submit(moves).failed

    def blank(self) -> None:
        for slot in range(PAGES):
            self.arena.fill(slot, 0)

    def holds_all(self, turned: bool) -> bool:
        order = range(PAGES)[::-1] if turned else range(PAGES)
        parts = [(at, page, layer) for at, page in enumerate(order) for layer in range(LAYOUT.layers)]
        return all((self.part(at, layer) == content_of(page, layer)).all() for at, page, layer in parts)

    def stream(self, slots: list[int]) -> list[Bytes]:
        """The parts of slots on disk as the ring delivers them, layer by layer; empty where one failed."""
        program = self.engine.program([DISK] * len(slots), slots, np.arange(LAYOUT.layers))
        first = self.engine.stream(program)
        parts = []
        for ticket in range(first, first + len(program)):
            landed = self.ring.wait(ticket + 1) is Answer.HIT
            address = int(self.ring.addresses(ticket, ticket + 1)[0])
            parts.append(bytes_at(address, LAYOUT.part_stride if landed else 0).copy())
            self.ring.release(ticket + 1)
        return parts

    def close(self) -> None:
        self.backend.close()
        for store in self.stores.values():
            store.close()


@pytest.fixture(params=[CpuDevice, SimDevice], ids=["cpu", "sim"])
def backend(request: pytest.FixtureRequest) -> DeviceBackend:
    device: DeviceBackend = request.param()
    return device


@pytest.fixture(params=CODECS)
def rig(request: pytest.FixtureRequest, backend: DeviceBackend, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(backend, tmp_path, make_codec(request.param))
    yield rig
    rig.close()


@pytest.fixture
def packed(backend: DeviceBackend, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(backend, tmp_path, Bitpack())
    assert not rig.move_all(DEVICE, DISK)
    yield rig
    rig.close()


def test_to_disk_and_back(rig: Rig) -> None:
    assert not rig.move_all(DEVICE, DISK)
    assert (rig.disk.packed[::-1] == (FITS if rig.disk.packs else 0)).all()
    rig.blank()
    assert not rig.move_all(DISK, DEVICE)
    assert rig.holds_all(turned=False)


def test_through_every_tier(rig: Rig) -> None:
    """Host pages lie raw, with other checksums than the packed ones below; each move verifies what it reads."""
    for source, target in [(DEVICE, HOST), (HOST, DISK), (DISK, HOST), (HOST, DISK), (DISK, DEVICE)]:
        assert not rig.move_all(source, target)
        if source is DEVICE:
            rig.blank()
    assert rig.holds_all(turned=True)


def test_streams(rig: Rig) -> None:
    assert not rig.move_all(DEVICE, DISK)
    slots = [5, 0, 3, 1, 2, 4]
    parts = rig.stream(slots)
    pages = [(PAGES - 1 - slot, layer) for layer in range(LAYOUT.layers) for slot in slots]
    for part, (page, layer) in zip(parts, pages, strict=True):
        assert (part == content_of(page, layer)).all()


def test_direct_reads_and_writes(tmp_path: Path) -> None:
    rig = Rig(CpuDevice(), tmp_path, Bitpack(), direct=True)
    assert not rig.move_all(DEVICE, DISK)
    rig.blank()
    assert not rig.move_all(DISK, DEVICE)
    assert rig.holds_all(turned=False)
    rig.close()


def test_bytes_are_counted_as_they_are_stored(packed: Rig) -> None:
    fits = int(FITS.sum())
    wanted = fits * packed.disk.far_bytes + (FITS.size - fits) * LAYOUT.part_stride
    assert packed.engine.moved_bytes["nvme_write"] == wanted
    packed.stream(list(range(PAGES)))
    assert packed.engine.moved_bytes["nvme_read"] == wanted


@pytest.mark.parametrize("at", [0, 1, 4096, -1])
def test_every_flipped_byte_is_seen(packed: Rig, at: int) -> None:
    """In a packed part, its padding, the beginning of a raw part and its end."""
    slots = {False: PAGES - 1 - 2, True: 0}
    for fits, slot in slots.items():
        places = packed.disk.places(slot, 1)
        rest = LAYOUT.part_stride - places.far_bytes
        spots = [(places.place, places.far_bytes)] + ([] if fits else [(places.tail, rest)])
        for place, nbytes in spots:
            flip(int(places.fd), int(place) + at % nbytes)
            assert [len(part) for part in packed.stream([slot])] == [
                LAYOUT.part_stride,
                0,
                LAYOUT.part_stride,
            ]
            assert [move.source_slot for move in packed.move_all(DISK, HOST)] == [slot]
            packed.ring.cancel()
            flip(int(places.fd), int(place) + at % nbytes)
            assert not packed.move_all(DISK, HOST)


def flip(fd: int, at: int) -> None:
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    os.pwrite(own, bytes([os.pread(own, 1, at)[0] ^ 0x10]), at)
    os.close(own)


def test_what_no_encoder_wrote_is_damage_and_leaves_nothing(packed: Rig) -> None:
    """The checksum matches, the bytes decode to nothing: the destination is filled with NaN."""
    slot, places = 0, packed.disk.places(0, 0)
    own = os.open(f"/proc/self/fd/{int(places.fd)}", os.O_RDWR)
    os.pwrite(own, b"\xff" * places.far_bytes, int(places.place))
    os.close(own)
    assert packed.disk.packed[slot, 0]
    stored = np.full(places.far_bytes, 0xFF, np.uint8)
    packed.disk.checksums[slot, 0] = crc32c(stored.ctypes.data, stored.size)
    assert [move.source_slot for move in packed.move_all(DISK, DEVICE)] == [slot]
    assert (packed.part(PAGES - 1, 0) == 0xFF).all()


@pytest.mark.parametrize("slab_pages", [1, 3, 4, 7])
@pytest.mark.parametrize("codec", CODECS)
def test_no_two_parts_share_a_byte_and_none_lies_outside(codec: str, slab_pages: int, tmp_path: Path) -> None:
    limit = 7 * LAYOUT.page_bytes
    disk = DiskStore(tmp_path, limit, LAYOUT, slab_pages=slab_pages, codec=make_codec(codec))
    disk.ensure(7)
    used: dict[int, list[tuple[int, int]]] = {}
    for slot in range(7):
        for layer in range(LAYOUT.layers):
            one = disk.places(slot, layer)
            pieces = used.setdefault(int(one.fd), [])
            pieces.append((int(one.place), int(one.place) + one.far_bytes))
            pieces.append((int(one.tail), int(one.tail) + LAYOUT.part_stride - one.far_bytes))
    sizes = 0
    for fd, pieces in used.items():
        pieces = sorted(piece for piece in pieces if piece[0] < piece[1])
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(pieces))
        assert pieces[-1][1] <= os.fstat(fd).st_size
        sizes += os.fstat(fd).st_size
    assert sizes == disk.high_water_bytes == limit
    disk.close()
