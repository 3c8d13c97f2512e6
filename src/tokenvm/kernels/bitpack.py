"""The bitpack codec on arrays: bfloat16 values with their exponents in three bits. docs/codecs.md has the format."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from tokenvm.kernels.native import native

Bytes = npt.NDArray[np.uint8]

STEP_BYTES: Final = 512
"""Parts are whole multiples of this: 256 values share one top exponent."""

FIXED_BYTES: Final = 353
"""What each 512 bytes of a part take before escapes: 256 rests, 96 bytes of planes, one top."""


def encode(part: Bytes, stored: Bytes) -> int:
    """Write the packed form of `part` to the beginning of `stored`; return its bytes, 0 if it does not fit.

    part: uint8 [n], n a multiple of 512, else ValueError. stored: uint8, apart from it. Both contiguous. The
    rest of `stored`, and all of it at 0, holds nothing in particular. Every instruction set writes the same.
    """
    _check(part, stored)
    return int(native().bitpack_encode(part.ctypes.data, part.size, stored.ctypes.data, stored.size))


def decode(stored: Bytes, part: Bytes) -> bool:
    """Fill `part` from `stored`, which may be longer than what was packed; False if no encoder wrote it.

    Shapes as in `encode`. Reads nothing beyond `stored`, whatever its bytes are.
    """
    _check(part, stored)
    return bool(native().bitpack_decode(stored.ctypes.data, stored.size, part.ctypes.data, part.size))


def _check(part: Bytes, stored: Bytes) -> None:
    for name, array in (("part", part), ("stored", stored)):
        if array.dtype != np.uint8 or array.ndim != 1 or not array.flags.c_contiguous:
            raise ValueError(f"{name} must be a contiguous uint8 array of one dimension")
    if part.size % STEP_BYTES:
        raise ValueError(f"a part of {part.size} bytes is not a whole multiple of {STEP_BYTES}")
