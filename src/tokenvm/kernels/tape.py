"""Kernel calls that are checked and recorded once, then played at every step without the interpreter between them."""

from __future__ import annotations

from collections.abc import Callable

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
        self._product(self._native.linear, x, w, out, w.rows, torch.float32)

    def linear_add(self, x: torch.Tensor, w: PackedMatrix, out: torch.Tensor) -> None:
        """Record out += x @ w.T: x [capacity, K] in the weight's dtype, out float32 [capacity, N]."""
        self._product(self._native.linear_add, x, w, out, w.rows, torch.float32)

    def linear_silu_mul(self, x: torch.Tensor, w: PackedMatrix, out: torch.Tensor) -> None:
        """Record out = silu(x @ g.T) * (x @ u.T), w holding the rows of g, then u; out [capacity, N/2].

        x and out have the weight's dtype.
        """
        if w.rows % 2:
            raise ValueError(f"w must hold as many gates as ups, not {w.rows} rows in all")
        self._product(self._native.linear_silu_mul, x, w, out, w.rows // 2, w.dtype)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
        """Record out = rms_norm(x) * weight: x float32 [capacity, H], weight float32 [H]."""
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

    def gelu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """Record out = gelu(gate) * up: gate_up float32 [capacity, 2I], the gate first, out [capacity, I]."""
        width = checks.dimensions("out", out, 2)[1]
        self._native.gelu_mul(
            self._rows("gate_up", gate_up, 2 * width, torch.float32),
            width,
            self._rows("out", out, width, out.dtype),
            checks.narrow(out.dtype, "out's dtype"),
        )

    def norm_heads(self, x: torch.Tensor, first: int, count: int, weight: torch.Tensor, eps: float) -> None:
        """Record rms_norm, in place, of the heads [first, first + count) of x.

        x: float32 [capacity, heads * D]; weight: float32 [D].
        """
        head_dim = checks.dimensions("weight", weight, 1)[0]
        width = checks.dimensions("x", x, 2)[1]
        if width % head_dim or not 0 <= first <= first + count <= width // head_dim:
            raise ValueError(f"heads {first} to {first + count} of {head_dim} are not among {width} columns")
        self._native.norm_heads(
            self._rows("x", x, width, torch.float32),
            width // head_dim,
            first,
            count,
            head_dim,
            checks.tensor("weight", weight, (head_dim,), torch.float32),
            eps,
        )
        self._kept.append(weight)

    def add_rows(self, x: torch.Tensor, added: torch.Tensor) -> None:
        """Record x += added: x float32 [capacity, H]; added float32 [capacity, H], or [H] for every row the same."""
        width = checks.dimensions("x", x, 2)[1]
        target = self._rows("x", x, width, torch.float32)
        shared = added.dim() == 1
        source = checks.tensor("added", added, (width,) if shared else (self.capacity, width), torch.float32)
        self._native.add_rows(target, source, 0 if shared else width, width)
        self._kept.append(added)

    def play(self, rows: int) -> None:
        """Carry out every call, in order, for the first `rows` rows. Raises ValueError beyond the capacity."""
        if not 0 <= rows <= self.capacity:
            raise ValueError(f"{rows} rows do not fit buffers of {self.capacity}")
        self._native.play(rows)

    def _product(
        self,
        record: Callable[[bool, int, int, int, int, int], None],
        x: torch.Tensor,
        w: PackedMatrix,
        out: torch.Tensor,
        columns: int,
        dtype: torch.dtype,
    ) -> None:
        record(
            w.dtype is torch.bfloat16,
            self._rows("x", x, w.columns, w.dtype),
            w.storage.data_ptr(),
            w.rows,
            w.columns,
            self._rows("out", out, columns, dtype),
        )
        self._kept.append(w)

    def _rows(self, name: str, value: torch.Tensor, width: int, dtype: torch.dtype) -> int:
        address = checks.tensor(name, value, (self.capacity, width), dtype)
        self._kept.append(value)
        return address
