"""The bitpack format in plain numpy: slow, and the specification of the native codec, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tokenvm.kernels.bitpack import Bytes

_VALUES = 256
_FAR = 15


def encode(part: Bytes) -> Bytes:
    """Return the packed form of a part, uint8 [n] with n a multiple of 512."""
    values = part.view("<u2").astype(np.int64)
    exponents = (values >> 7 & 0xFF).reshape(-1, _VALUES)
    rests = (values >> 8 & 0x80) | (values & 0x7F)
    tops = np.array([_choose_top(row) for row in exponents], np.int64)
    codes = np.minimum((tops[:, None] - exponents) % 256, 7)
    planes = [np.packbits(codes.reshape(-1, 8) >> b & 1, axis=1, bitorder="little") for b in range(3)]
    interleaved = np.stack([plane.reshape(-1, 8) for plane in planes], axis=1)  # 64 values a row
    nibbles = [
        nibble
        for top, row, code in zip(tops.tolist(), exponents, codes, strict=True)
        for exponent in row[code == 7].tolist()
        for nibble in _escape(top, exponent)
    ]
    low, high = np.array(nibbles[0::2], np.uint8), np.array([*nibbles[1::2], 0], np.uint8)
    escapes = low | high[: len(low)] << 4
    sections = rests, interleaved.ravel(), tops, escapes
    return np.concatenate([section.astype(np.uint8) for section in sections])


def decode(stored: Bytes, nbytes: int) -> Bytes:
    """Return the part of `nbytes` bytes that `stored` begins with; IndexError where no encoder wrote it."""
    count = nbytes // 2
    sections = np.split(stored, np.cumsum([count, count * 3 // 8, count // _VALUES]))
    rests, tops = sections[0].astype(np.int64), np.repeat(sections[2].astype(np.int64), _VALUES)
    bits = np.unpackbits(sections[1].reshape(-1, 3, 8), axis=2, bitorder="little").astype(np.int64)
    codes = (bits[:, 0] | bits[:, 1] << 1 | bits[:, 2] << 2).ravel()
    exponents = (tops - codes) % 256
    nibbles = (int(byte) >> shift & 15 for byte in sections[3] for shift in (0, 4))
    for at in np.flatnonzero(codes == 7).tolist():
        exponents[at] = _exponent(int(tops[at]), nibbles)
    values = (rests & 0x80) << 8 | exponents << 7 | (rests & 0x7F)
    return values.astype("<u2").view(np.uint8)


def _choose_top(exponents: NDArray[np.int64]) -> int:
    """The top, up to three below the highest exponent, with the fewest nibbles of escapes; the higher of equals."""
    highest = int(exponents.max())

    def cost(top: int) -> int:
        depth = top - exponents
        return int(((depth < 0) | (depth >= 7)).sum() + 2 * (depth >= 19).sum())

    return min(range(highest, max(-1, highest - 4), -1), key=cost)


def _escape(top: int, exponent: int) -> list[int]:
    """The nibbles of an exponent outside [top - 6, top]: the lower half first where it takes the whole."""
    raised = (top + 3 - exponent) % 256
    if raised < 3:
        return [raised]
    return [raised - 7] if raised < 22 else [_FAR, exponent & 15, exponent >> 4]


def _exponent(top: int, nibbles: Iterator[int]) -> int:
    nibble = _next(nibbles)
    if nibble == _FAR:
        return _next(nibbles) | _next(nibbles) << 4
    return (top + 3 - nibble - (7 if nibble >= 3 else 0)) % 256


def _next(nibbles: Iterator[int]) -> int:
    for nibble in nibbles:
        return nibble
    raise IndexError("the escapes end before the values do")
