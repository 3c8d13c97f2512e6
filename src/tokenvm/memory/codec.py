"""Lossless codecs of a tier: a part's bytes into fewer and back, exactly."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenvm.errors import ConfigError
from tokenvm.kernels import bitpack
from tokenvm.memory.layout import ALIGNMENT_BYTES
from tokenvm.vocab import Answer

Bytes = NDArray[np.uint8]


class Codec(Protocol):
    """Stores a part in a size class of its own, where it fits. Called from several threads at once."""

    @property
    def name(self) -> str:
        """The word by which configuration knows it."""
        ...

    def stored_bytes(self, part_stride: int) -> int:
        """Bytes of the size class that parts of `part_stride` bytes are stored in: whole 4 KiB, never more."""
        ...

    def encode(self, part: Bytes, stored: Bytes) -> Answer:
        """Fill all of `stored` with the encoded part: HIT. MISS if it does not fit; then `stored` is unspecified.

        Both are contiguous uint8 and do not overlap; `part` has a multiple of 4 KiB.
        """
        ...

    def decode(self, stored: Bytes, part: Bytes) -> Answer:
        """Fill `part` from what `encode` stored: HIT. MISS if it never did; then `part` is unspecified.

        Touches nothing outside of the two, whatever the bytes are.
        """
        ...


class Identity:
    """The null codec: bytes go as they are."""

    name = "none"

    def stored_bytes(self, part_stride: int) -> int:
        """Return `part_stride`."""
        return part_stride

    def encode(self, part: Bytes, stored: Bytes) -> Answer:
        """See `Codec.encode`."""
        return _put(part, stored)

    def decode(self, stored: Bytes, part: Bytes) -> Answer:
        """See `Codec.decode`."""
        if stored.size < part.size:
            return Answer.MISS
        part[:] = stored[: part.size]
        return Answer.HIT


class Bitpack:
    """bfloat16 with exponents in three bits and some more; `kernels.bitpack` has the format. Native throughout."""

    name = "bitpack"

    def stored_bytes(self, part_stride: int) -> int:
        """Return 17/24 of a part: KV of real models takes 0.696 to 0.699 of it."""
        return _whole_blocks(part_stride, 17)

    def encode(self, part: Bytes, stored: Bytes) -> Answer:
        """See `Codec.encode`."""
        used = bitpack.encode(part, stored)
        stored[used:] = 0
        return Answer.HIT if used else Answer.MISS

    def decode(self, stored: Bytes, part: Bytes) -> Answer:
        """See `Codec.decode`."""
        return Answer.HIT if bitpack.decode(stored, part) else Answer.MISS


class Zstd:
    """Zstandard (RFC 8878, level 3) over all low bytes, then all high bytes: the exponents lie together."""

    name = "zstd"

    def __init__(self) -> None:
        self._zstd = _package("zstandard", self.name)

    def stored_bytes(self, part_stride: int) -> int:
        """Return 19/24 of a part: KV of real models takes 0.73 to 0.77 of it."""
        return _whole_blocks(part_stride, 19)

    def encode(self, part: Bytes, stored: Bytes) -> Answer:
        """See `Codec.encode`."""
        planes = np.ascontiguousarray(part.reshape(-1, 2).T)
        return _put_frame(self._zstd.ZstdCompressor(level=3).compress(planes), stored)

    def decode(self, stored: Bytes, part: Bytes) -> Answer:
        """See `Codec.decode`. A frame that claims another length is refused before memory is taken for it."""
        frame = _frame_in(stored)
        try:
            if self._zstd.get_frame_parameters(frame).content_size != part.size:
                return Answer.MISS
            planes = self._zstd.ZstdDecompressor().decompress(frame)
        except self._zstd.ZstdError:
            return Answer.MISS
        part.reshape(-1, 2)[:] = np.frombuffer(planes, np.uint8).reshape(2, -1).T
        return Answer.HIT


class Lz4:
    """LZ4 blocks over bit planes: it has no entropy coder, and finds only the bits of exponents that repeat."""

    name = "lz4"

    def __init__(self) -> None:
        self._lz4 = _package("lz4.block", self.name)

    def stored_bytes(self, part_stride: int) -> int:
        """Return 20/24 of a part: KV of real models takes 0.77 to 0.81 of it."""
        return _whole_blocks(part_stride, 20)

    def encode(self, part: Bytes, stored: Bytes) -> Answer:
        """See `Codec.encode`."""
        bits = np.unpackbits(part.reshape(-1, 2), axis=1)
        planes = np.packbits(np.ascontiguousarray(bits.T), axis=1)
        return _put_frame(self._lz4.compress(planes, store_size=False), stored)

    def decode(self, stored: Bytes, part: Bytes) -> Answer:
        """See `Codec.decode`."""
        try:
            planes = self._lz4.decompress(_frame_in(stored), uncompressed_size=part.size)
        except self._lz4.LZ4BlockError:
            return Answer.MISS
        if len(planes) != part.size:
            return Answer.MISS
        bits = np.unpackbits(np.frombuffer(planes, np.uint8).reshape(16, -1), axis=1)
        part.reshape(-1, 2)[:] = np.packbits(np.ascontiguousarray(bits.T), axis=1)
        return Answer.HIT


CODECS: Final[Mapping[str, Callable[[], Codec]]] = {
    "none": Identity,
    "bitpack": Bitpack,
    "lz4": Lz4,
    "zstd": Zstd,
}
"""The values of the setting `compression`."""


def make_codec(name: str) -> Codec:
    """Make a codec by its name; ConfigError where the package it needs is not installed."""
    return CODECS[name]()


def _package(module: str, codec: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f'compression="{codec}" needs a package that is not installed ({error}): '
            'type `pip install "tokenvm[codecs]"`, or use compression="bitpack"'
        ) from error


def _whole_blocks(part_stride: int, of_24: int) -> int:
    """Round so many 24ths of a part up to what direct I/O can move."""
    return min(part_stride, -(-part_stride * of_24 // (24 * ALIGNMENT_BYTES)) * ALIGNMENT_BYTES)


_LENGTH_BYTES = 4


def _put_frame(frame: bytes, stored: Bytes) -> Answer:
    """Store a frame behind its length."""
    whole = len(frame).to_bytes(_LENGTH_BYTES, "little") + frame
    return _put(np.frombuffer(whole, np.uint8), stored)


def _put(given: Bytes, stored: Bytes) -> Answer:
    if given.size > stored.size:
        return Answer.MISS
    stored[: given.size] = given
    stored[given.size :] = 0
    return Answer.HIT


def _frame_in(stored: Bytes) -> bytes:
    length = int.from_bytes(stored[:_LENGTH_BYTES].tobytes(), "little")
    return stored[_LENGTH_BYTES : _LENGTH_BYTES + length].tobytes()
