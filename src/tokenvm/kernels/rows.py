"""Rows on their way from one kernel into a matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from tokenvm.kernels import checks
from tokenvm.kernels.native import native

_ROWS_STEP = 16


@dataclass(frozen=True)
class MatrixRows:
    """Up to `capacity` rows [columns] in the order in which matrix products read them; `dtype` is the weights'.

    A `Tape` writes and reads them within one play; what they hold has no meaning elsewhere, since their order is the
    instruction set's own. `storage` (uint8, 64-byte aligned) owns the bytes.
    """

    capacity: int
    columns: int
    dtype: torch.dtype
    storage: torch.Tensor

    @classmethod
    def over(cls, storage: torch.Tensor, capacity: int, columns: int, dtype: torch.dtype) -> Self:
        """Rows in `storage`; ValueError unless it holds `matrix_rows_bytes` and begins at a multiple of 64."""
        wanted = matrix_rows_bytes(capacity, columns, dtype)
        checks.tensor("storage", storage, (wanted,), torch.uint8)
        if storage.data_ptr() % 64:
            raise ValueError("storage must begin at a multiple of 64 bytes")
        return cls(capacity, columns, dtype, storage)

    @property
    def nbytes(self) -> int:
        """Bytes of the storage; some instruction sets leave half of them untouched."""
        return self.storage.numel()


def matrix_rows_bytes(capacity: int, columns: int, dtype: torch.dtype) -> int:
    """Return the bytes that so many rows take at most."""
    narrow = checks.narrow(dtype, "the weights' dtype")
    padded = -(-capacity // _ROWS_STEP) * _ROWS_STEP if narrow else capacity
    return padded * int(native().prepared_row_bytes(narrow, columns))
