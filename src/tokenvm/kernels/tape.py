"""Kernel calls that are checked and recorded once, then played at every step without the interpreter between them."""

from __future__ import annotations

import torch

from tokenvm.kernels import checks
from tokenvm.kernels.linear import PackedMatrix
from tokenvm.kernels.native import native


class Tape:
    """A sequence of calls on buffers of `capacity` rows. Playing it for M rows works on the first M of each.

    Every operation is the one of the same name in `kernels.linear` and `kernels.norm`, bit for bit. The tape keeps its
    buffers and weights alive.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._native = native().Tape()
        self._kept: list[torch.Tensor | PackedMatrix] = []

    def linear(self, x: torch.Tensor, w: PackedMatrix, out: torch.Tensor) -> None:
        """Record out = x @ w.T: x [capacity, K] in the weight's dtype, out float32 [capacity, N]."""
        self._native.linear(*self._product(x, w), self._rows("out", out, w.rows, torch.float32))

    def linear_add(self, x: torch.Tensor, w: PackedMatrix, out: torch.Tensor) -> None:
        """Record out += x @ w.T: x [capacity, K] in the weight's dtype, out float32 [capacity, N]."""
        self._native.linear_add(*self._product(x, w), self._rows("out", out, w.rows, torch.float32))

    def linear_silu_mul(self, x: torch.Tensor, w: PackedMatrix, out: torch.Tensor) -> None:
        """Record out = silu(x @ g.T) * (x @ u.T), w holding g, then u: x [capacity, K], out [capacity, N/2]."""
        if w.rows % 2:
            raise ValueError(f"w must hold as many gates as ups, not {w.rows} rows in all")
        target = self._rows("out", out, w.rows // 2, out.dtype)
        self._native.linear_silu_mul(*self._product(x, w), target, checks.narrow(out.dtype, "out's dtype"))

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
        """Record out = rms_norm(x) * weight: x float32 [capacity, H], weight float32 [H], out [capacity, H]."""
        width = checks.dimensions("x", x, 2)[1]
        self._native.rms_norm(
            self._rows("x", x, width, torch.float32),
            checks.tensor("weight", weight, (width,), torch.float32),
            eps,
            width,
            self._rows("out", out, width, out.dtype),
            checks.narrow(out.dtype, "out's dtype"),
        )
        self._kept.append(weight)

    def play(self, rows: int) -> None:
        """Carry out every call, in order, for the first `rows` rows. Raises ValueError beyond the capacity."""
        if not 0 <= rows <= self.capacity:
            raise ValueError(f"{rows} rows do not fit buffers of {self.capacity}")
        self._native.play(rows)

    def _rows(self, name: str, value: torch.Tensor, width: int, dtype: torch.dtype) -> int:
        address = checks.tensor(name, value, (self.capacity, width), dtype)
        self._kept.append(value)
        return address

    def _product(self, x: torch.Tensor, w: PackedMatrix) -> tuple[bool, int, int, int, int]:
        self._kept.append(w)
        source = self._rows("x", x, w.columns, w.dtype)
        return w.dtype is torch.bfloat16, source, w.storage.data_ptr(), w.rows, w.columns
