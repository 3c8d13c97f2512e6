"""The bytes of a disk index: its heads and records, as docs/page-format.md has them. Bytes in, arrays out."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenvm.memory.codec import Bytes
from tokenvm.memory.cpu import crc32c
from tokenvm.memory.layout import ALIGNMENT_BYTES

MAGIC = b"TVMPAGES"
VERSION = 1
HEAD_BYTES = 4096
SPARE_RECORDS = 64
PAGE, EMPTY = 1, 2
KEY_BYTES = 16
NO_KEY = bytes(KEY_BYTES)
"""The parent of a first page, as it is written."""

_HEAD = struct.Struct("<8sIIII8sQQQQ")
_CHECKSUM_AT = HEAD_BYTES - 4
_MOST_LAYERS = 4096
_MOST_PART_BYTES = 1 << 30
_MOST_PAGES = 1 << 24
_MOST_GENERATIONS = 1 << 63

Records = NDArray[np.void]
"""Records of one index as a structured array; see `record_type`."""


class Verdict(enum.Enum):
    """What a head turned out to be."""

    GOOD = "good"
    BLANK = "blank"
    FOREIGN = "foreign"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Geometry:
    """What all slots of a store have in common: parts of a page, bytes of a part raw and encoded, who encodes."""

    layers: int
    part_stride: int
    far_bytes: int
    codec: str

    @property
    def page_bytes(self) -> int:
        """Bytes of a slot."""
        return self.layers * self.part_stride

    @property
    def record_bytes(self) -> int:
        """Bytes of a record."""
        return record_type(self.layers).itemsize


@dataclass(frozen=True, slots=True)
class Head:
    """The first block of an index file."""

    geometry: Geometry
    slab_pages: int
    capacity: int
    generation: int
    checkpointed: int

    @property
    def file_bytes(self) -> int:
        """Bytes of the file it begins."""
        return index_file_bytes(self.geometry, self.capacity)

    @property
    def places(self) -> int:
        """Records that the file has room for."""
        return record_places(self.capacity)

    def pack(self) -> bytes:
        """Return the block."""
        g = self.geometry
        fields = (MAGIC, VERSION, g.layers, g.part_stride, g.far_bytes, g.codec.encode().ljust(8, b"\0"))
        numbers = (self.slab_pages, self.capacity, self.generation, self.checkpointed)
        block = _HEAD.pack(*fields, *numbers).ljust(_CHECKSUM_AT, b"\0")
        return block + struct.pack("<I", checksum_of(block))


NO_HEAD = Head(Geometry(1, ALIGNMENT_BYTES, ALIGNMENT_BYTES, "none"), 1, 1, 1, 0)
"""Stands beside a verdict that is not GOOD, and means nothing."""


def read_head(block: bytes) -> tuple[Verdict, Head]:
    """Judge the first block of an index file; the head means something where it is GOOD."""
    if len(block) != HEAD_BYTES:
        return Verdict.DAMAGED, NO_HEAD
    if not any(block):
        return Verdict.BLANK, NO_HEAD
    (checksum,) = struct.unpack_from("<I", block, _CHECKSUM_AT)
    if checksum != checksum_of(block[:_CHECKSUM_AT]):
        return Verdict.DAMAGED, NO_HEAD
    magic, version, layers, stride, far, codec, slab_pages, capacity, generation, kept = _HEAD.unpack_from(
        block
    )
    if magic != MAGIC or version != VERSION:
        return Verdict.FOREIGN, NO_HEAD
    name = codec.rstrip(b"\0")
    possible = (
        0 < layers <= _MOST_LAYERS
        and _whole_blocks(stride, _MOST_PART_BYTES)
        and _whole_blocks(far, stride)
        and name.isalnum()
        and 0 < slab_pages <= _MOST_PAGES
        and 0 < capacity <= _MOST_PAGES
        and capacity % slab_pages == 0
        and 0 < generation < _MOST_GENERATIONS
        and kept <= capacity
    )
    if not possible:
        return Verdict.DAMAGED, NO_HEAD
    geometry = Geometry(layers, stride, far, name.decode())
    return Verdict.GOOD, Head(geometry, slab_pages, capacity, generation, kept)


def record_type(layers: int) -> np.dtype[np.void]:
    """Return the fields of a record of pages with so many parts, one behind the other without gaps.

    What fills it up to a multiple of 8 is a field too: numpy keeps such a layout when arrays are joined.
    """
    packed_bytes = -(-layers // 8)
    fields = [
        ("checksum", "<u4"),
        ("kind", "<u4"),
        ("generation", "<u8"),
        ("number", "<u8"),
        ("slot", "<u8"),
        ("written_s", "<u8"),
        ("key", "u1", (KEY_BYTES,)),
        ("parent", "u1", (KEY_BYTES,)),
        ("fingerprint", "u1", (KEY_BYTES,)),
        ("reserved", "<u8"),
        ("checksums", "<u4", (layers,)),
        ("packed", "u1", (packed_bytes,)),
    ]
    padding = -(96 + 4 * layers + packed_bytes) % 8
    return np.dtype([*fields, ("padding", "u1", (padding,))] if padding else fields)


def record_places(capacity: int) -> int:
    """Return how many records an index file has room for."""
    return 2 * capacity + SPARE_RECORDS


def index_file_bytes(geometry: Geometry, capacity: int) -> int:
    """Return the bytes of one index file."""
    records = record_places(capacity) * geometry.record_bytes
    return HEAD_BYTES + -(-records // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def seal_records(records: Records) -> None:
    """Write each record's checksum; `records` is contiguous."""
    body = records.dtype.itemsize - 4
    begin = records.ctypes.data
    records["checksum"] = [
        crc32c(begin + row * records.dtype.itemsize + 4, body) for row in range(len(records))
    ]


def read_records(chunk: Bytes, first: int, head: Head) -> tuple[Records, int]:
    """Return the records of a stretch of places that count, in order, and how many are damaged.

    `chunk` is contiguous uint8 and begins at place `first`; bytes behind its last whole record are ignored.
    """
    kind = record_type(head.geometry.layers)
    count = min(chunk.size // kind.itemsize, max(0, head.places - first))
    rows = chunk[: count * kind.itemsize].view(kind)
    written = chunk[: count * kind.itemsize].reshape(count, kind.itemsize).any(axis=1)
    begin, size = rows.ctypes.data, kind.itemsize
    places = np.flatnonzero(written)
    sums = np.array([crc32c(begin + row * size + 4, size - 4) for row in places.tolist()], np.uint32)
    sound = np.zeros(count, bool)
    sound[places] = sums == rows["checksum"][places]
    left_over = sound & (rows["generation"] != head.generation)
    counts = sound & ~left_over & (rows["number"] == np.arange(first + 1, first + count + 1, dtype=np.uint64))
    counts &= (rows["slot"] < head.capacity) & ((rows["kind"] == PAGE) | (rows["kind"] == EMPTY))
    return rows[counts], int((written & ~counts & ~left_over).sum())


def pack_bits(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return one bit for each part, [..., layers] to [..., ceil(layers / 8)], as a record has them."""
    return np.packbits(packed.astype(bool), axis=-1, bitorder="little")


def unpack_bits(bits: NDArray[np.uint8], layers: int) -> NDArray[np.uint8]:
    """Undo `pack_bits`."""
    return np.unpackbits(bits, axis=-1, count=layers, bitorder="little")


def checksum_of(block: bytes) -> int:
    """Return the CRC-32C of bytes in memory."""
    held = np.frombuffer(block, np.uint8)
    return crc32c(held.ctypes.data, held.size)


def _whole_blocks(nbytes: int, most: int) -> bool:
    return 0 < nbytes <= most and nbytes % ALIGNMENT_BYTES == 0
