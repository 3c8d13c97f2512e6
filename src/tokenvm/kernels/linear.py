"""Matrix products over packed weights. Neither row count, threads nor instruction set change a row's bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenvm.kernels import checks
from tokenvm.kernels.native import native
from tokenvm.kernels.weight_memory import WeightMemory

_ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class PackedMatrix:
    """A weight [rows, columns] in the order in which the kernels read it; immutable.

    `format` is "bf16-k32n16" ([N/16][K/32][16 pairs][16 outputs][2]) or "fp32-n16" ([N/16][K][16 outputs]),
    padded with zeros. `storage` (uint8, 64-byte aligned) owns the bytes.
    """

    rows: int
    columns: int
    dtype: torch.dtype
    storage: torch.Tensor
    format: str

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, padding included."""
        return self.storage.numel()


def packed_bytes(rows: int, columns: int, dtype: torch.dtype) -> int:
    """Return the bytes that `pack` makes of a weight [rows, columns], bfloat16 or float32."""
    return int(native().packed_bytes(checks.narrow(dtype, "the weight's dtype"), rows, columns))


def pack(weight: torch.Tensor, memory: WeightMemory | None = None) -> PackedMatrix:
    """Pack a contiguous CPU weight [N, K], bfloat16 or float32, of any size; into `memory` if there is one."""
    rows, columns = checks.dimensions("weight", weight, 2)
    narrow = checks.narrow(weight.dtype, "the weight's dtype")
    source = checks.tensor("weight", weight, (rows, columns), weight.dtype)
    nbytes = native().packed_bytes(narrow, rows, columns)
    storage = _aligned(nbytes) if memory is None else memory.take(nbytes)
    native().pack(narrow, source, rows, columns, storage.data_ptr())
    return PackedMatrix(rows, columns, weight.dtype, storage, "bf16-k32n16" if narrow else "fp32-n16")


def linear(x: torch.Tensor, w: PackedMatrix, out: torch.Tensor | None = None) -> torch.Tensor:
    """x [M, K] @ w.T -> float32 [M, N]; x in the weight's dtype. Dots: "k32" (bf16), sequential (fp32)."""
    count = checks.dimensions("x", x, 2)[0]
    source = checks.tensor("x", x, (count, w.columns), w.dtype)
    out, target = checks.result(out, (count, w.rows), torch.float32)
    narrow = w.dtype is torch.bfloat16
    native().linear(narrow, source, count, w.storage.data_ptr(), w.rows, w.columns, target)
    return out


def linear_add(x: torch.Tensor, w: PackedMatrix, out: torch.Tensor) -> torch.Tensor:
    """out += x [M, K] @ w.T, in place; out float32 [M, N]. The bits of `linear` and an addition after it."""
    count = checks.dimensions("x", x, 2)[0]
    source = checks.tensor("x", x, (count, w.columns), w.dtype)
    target = checks.tensor("out", out, (count, w.rows), torch.float32)
    narrow = w.dtype is torch.bfloat16
    native().linear_add(narrow, source, count, w.storage.data_ptr(), w.rows, w.columns, target)
    return out


def linear_silu_mul(
    x: torch.Tensor, w: PackedMatrix, out_dtype: torch.dtype, out: torch.Tensor | None = None
) -> torch.Tensor:
    """silu(x @ g.T) * (x @ u.T) -> [M, N/2] in `out_dtype`; w holds the rows of g, then as many of u.

    The bits of `linear` and `silu_mul` after it. Quickest where N is a multiple of 32.
    """
    count = checks.dimensions("x", x, 2)[0]
    if w.rows % 2:
        raise ValueError(f"w must hold as many gates as ups, not {w.rows} rows in all")
    source = checks.tensor("x", x, (count, w.columns), w.dtype)
    narrow_out = checks.narrow(out_dtype, "out_dtype")
    out, target = checks.result(out, (count, w.rows // 2), out_dtype)
    narrow = w.dtype is torch.bfloat16
    native().linear_silu_mul(
        narrow, source, count, w.storage.data_ptr(), w.rows, w.columns, target, narrow_out
    )
    return out


def gather_rows(w: PackedMatrix, ids: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rows `ids` (int64 [M]) of the matrix, float32 [M, K]. Raises ValueError on an id outside [0, N)."""
    count = checks.dimensions("ids", ids, 1)[0]
    source = checks.tensor("ids", ids, (count,), torch.int64)
    out, target = checks.result(out, (count, w.columns), torch.float32)
    narrow = w.dtype is torch.bfloat16
    native().gather_rows(narrow, w.storage.data_ptr(), w.rows, w.columns, source, count, target)
    return out


def _aligned(nbytes: int) -> torch.Tensor:
    """Uninitialised bytes that start at a multiple of 64."""
    buffer = torch.empty(nbytes + _ALIGNMENT_BYTES, dtype=torch.uint8)
    start = -buffer.data_ptr() % _ALIGNMENT_BYTES
    return buffer[start : start + nbytes]
