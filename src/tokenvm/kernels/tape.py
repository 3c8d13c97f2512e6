"""Kernel calls that are checked and recorded once, then played at every step without the interpreter between them."""

from __future__ import annotations

import torch

from tokenvm.kernels import checks
from tokenvm.kernels.linear import PackedMatrix
from tokenvm.kernels.native import native
from tokenvm.kernels.rows import MatrixRows

Rows = torch.Tensor | MatrixRows


class Tape:
    """A sequence of calls on buffers of `capacity` rows. Playing it for M rows works on the first M of each.

    Every operation is the one of the same name in `kernels.linear` and `kernels.norm`, bit for bit. What only leads
    from one call to a product of the same tape may be `MatrixRows`: no copy in between. The tape keeps its buffers and
    weights alive.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._native = native().Tape()
        self._kept: list[Rows | PackedMatrix] = []

    def linear(self, x: Rows, w: PackedMatrix, out: torch.Tensor) -> None:
        """Record out = x @ w.T: x [capacity, K] in the weight's dtype, out float32 [capacity, N]."""
        self._native.linear(*self._operands(x, w), self._address("out", out, w.rows, torch.float32))

    def linear_add(self, x: Rows, w: PackedMatrix, out: torch.Tensor) -> None:
        """Record out += x @ w.T: x [capacity, K] in the weight's dtype, out float32 [capacity, N]."""
        self._native.linear_add(*self._operands(x, w), self._address("out", out, w.rows, torch.float32))

    def linear_silu_mul(self, x: Rows, w: PackedMatrix, out: Rows) -> None:
        """Record out = silu(x @ g.T) * (x @ u.T), w holding the rows of g, then u; out [capacity, N/2].

        x and out have the weight's dtype.
        """
        if w.rows % 2:
            raise ValueError(f"w must hold as many gates as ups, not {w.rows} rows in all")
        target = self._rows("out", out, w.rows // 2, w.dtype)
        self._native.linear_silu_mul(*self._operands(x, w), *target)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: Rows) -> None:
        """Record out = rms_norm(x) * weight: x float32 [capacity, H], weight float32 [H]."""
        width, narrow = checks.dimensions("x", x, 2)[1], checks.narrow(out.dtype, "out's dtype")
        source = self._address("x", x, width, torch.float32)
        scale = checks.tensor("weight", weight, (width,), torch.float32)
        target, prepares = self._rows("out", out, width, out.dtype)
        self._native.rms_norm(source, scale, eps, width, target, narrow, prepares)
        self._kept.append(weight)

    def gelu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """Record out = gelu(gate) * up: gate_up float32 [capacity, 2I], the gate first, out [capacity, I]."""
        width = checks.dimensions("out", out, 2)[1]
        self._native.gelu_mul(
            self._address("gate_up", gate_up, 2 * width, torch.float32),
            width,
            self._address("out", out, width, out.dtype),
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
            self._address("x", x, width, torch.float32),
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
        target = self._address("x", x, width, torch.float32)
        shared = added.dim() == 1
        source = checks.tensor("added", added, (width,) if shared else (self.capacity, width), torch.float32)
        self._native.add_rows(target, source, 0 if shared else width, width)
        self._kept.append(added)

    def play(self, rows: int) -> None:
        """Carry out every call, in order, for the first `rows` rows. Raises ValueError beyond the capacity."""
        if not 0 <= rows <= self.capacity:
            raise ValueError(f"{rows} rows do not fit buffers of {self.capacity}")
        self._native.play(rows)

    def _operands(self, x: Rows, w: PackedMatrix) -> tuple[bool, int, bool, int, int, int]:
        """What every product begins with: dtype, where the rows are and how they lie, the weight and its shape."""
        source, prepared = self._rows("x", x, w.columns, w.dtype)
        self._kept.append(w)
        return w.dtype is torch.bfloat16, source, prepared, w.storage.data_ptr(), w.rows, w.columns

    def _rows(self, name: str, value: Rows, width: int, dtype: torch.dtype) -> tuple[int, bool]:
        """Address of plain or prepared rows, and whether they are prepared."""
        if isinstance(value, torch.Tensor):
            return self._address(name, value, width, dtype), False
        if (value.capacity, value.columns, value.dtype) != (self.capacity, width, dtype):
            raise ValueError(
                f"{name} must hold rows of {dtype} with shape {(self.capacity, width)}, "
                f"not {value.dtype} with shape {(value.capacity, value.columns)}"
            )
        self._kept.append(value)
        return value.storage.data_ptr(), True

    def _address(self, name: str, value: torch.Tensor, width: int, dtype: torch.dtype) -> int:
        address = checks.tensor(name, value, (self.capacity, width), dtype)
        self._kept.append(value)
        return address
