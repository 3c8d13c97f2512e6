"""How parts lie on the far side of copies to and from a store with a codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Rows = slice | NDArray[np.int64]
"""Which of several copies."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Columns of n copies to or from a store with a codec: how each part lies on the far side.

    `far_bytes` lie at the copy's place: where `packed`, the encoded part; else the beginning of the part, whose
    rest lies at `tail`. A write that asks for `packed` and does not fit is stored as it is.
    """

    packed: NDArray[np.uint8]
    far_bytes: NDArray[np.uint64]
    tail: NDArray[np.uint64]

    @classmethod
    def none(cls, nbytes: NDArray[np.uint64]) -> Self:
        """Say that parts lie as they are, each in one place."""
        return cls(np.zeros(nbytes.shape, np.uint8), nbytes.copy(), np.zeros(nbytes.shape, np.uint64))

    @property
    def columns(self) -> tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint64]]:
        """The three, in the order of the fields."""
        return self.packed, self.far_bytes, self.tail

    def rows(self, rows: Rows) -> Packing:
        """Return some of them."""
        return Packing(self.packed[rows], self.far_bytes[rows], self.tail[rows])
