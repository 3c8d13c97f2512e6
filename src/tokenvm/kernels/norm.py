"""Kernels that work on rows of activations. Activations are float32; results are float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tokenvm.kernels import checks
from tokenvm.kernels.native import native


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out_dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) * weight per row: x float32 [M, H], weight float32 [H] -> out_dtype [M, H]."""
    rows, width = checks.dimensions("x", x, 2)
    return _norm(
        checks.tensor("x", x, (rows, width), torch.float32), 0, rows, width, weight, eps, out_dtype, out
    )


def add_rms_norm(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out_dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x += delta` in place (both float32 [M, H]), then rms_norm of the sum."""
    rows, width = checks.dimensions("x", x, 2)
    source = checks.tensor("x", x, (rows, width), torch.float32)
    added = checks.tensor("delta", delta, (rows, width), torch.float32)
    return _norm(source, added, rows, width, weight, eps, out_dtype, out)


def silu_mul(gate_up: torch.Tensor, out_dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up: gate_up float32 [M, 2I], the gate first -> out_dtype [M, I]."""
    return _gated(native().silu_mul, gate_up, out_dtype, out)


def gelu_mul(gate_up: torch.Tensor, out_dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
    """gelu(gate) * up, gelu by its tanh formula: gate_up float32 [M, 2I], the gate first -> out_dtype [M, I].

    Source: Hendrycks and Gimpel, arXiv:1606.08415.
    """
    return _gated(native().gelu_mul, gate_up, out_dtype, out)


def norm_heads(x: torch.Tensor, first: int, count: int, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """rms_norm of each of the heads [first, first + count) of every row, in place.

    x: float32 [M, H, D]; weight: float32 [D]. Raises ValueError if x has no such heads.
    """
    rows, heads, head_dim = checks.dimensions("x", x, 3)
    if not 0 <= first <= first + count <= heads:
        raise ValueError(f"heads {first} to {first + count} are not among {heads}")
    target = checks.tensor("x", x, (rows, heads, head_dim), torch.float32)
    scale = checks.tensor("weight", weight, (head_dim,), torch.float32)
    native().norm_heads(target, rows, heads, first, count, head_dim, scale, eps)
    return x


def add_rows(x: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """x += added, in place: x float32 [M, H]; added float32 [M, H], or [H] for every row the same."""
    rows, width = checks.dimensions("x", x, 2)
    target = checks.tensor("x", x, (rows, width), torch.float32)
    shared = added.dim() == 1
    source = checks.tensor("added", added, (width,) if shared else (rows, width), torch.float32)
    native().add_rows(target, source, 0 if shared else width, rows, width)
    return x


def cast(x: torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
    """float32 x rounded to dtype (bfloat16: to nearest even; float32: a copy). Any shape."""
    shape = tuple(x.shape)
    source = checks.tensor("x", x, shape, torch.float32)
    narrow = checks.narrow(dtype)
    out, target = checks.result(out, shape, dtype)
    if narrow:
        native().cast_bf16(source, x.numel(), target)
    else:
        native().copy(target, source, x.numel() * 4)
    return out


def _norm(
    source: int,
    added: int,
    rows: int,
    width: int,
    weight: torch.Tensor,
    eps: float,
    out_dtype: torch.dtype,
    out: torch.Tensor | None,
) -> torch.Tensor:
    scale = checks.tensor("weight", weight, (width,), torch.float32)
    narrow = checks.narrow(out_dtype, "out_dtype")
    out, target = checks.result(out, (rows, width), out_dtype)
    native().rms_norm(source, added, scale, eps, rows, width, target, narrow)
    return out


def _gated(
    kernel: Callable[[int, int, int, int, bool], None],
    gate_up: torch.Tensor,
    out_dtype: torch.dtype,
    out: torch.Tensor | None,
) -> torch.Tensor:
    rows, both = checks.dimensions("gate_up", gate_up, 2)
    if both % 2:
        raise ValueError(f"gate_up must have an even number of columns, not {both}")
    source = checks.tensor("gate_up", gate_up, (rows, both), torch.float32)
    narrow = checks.narrow(out_dtype, "out_dtype")
    out, target = checks.result(out, (rows, both // 2), out_dtype)
    kernel(source, rows, both // 2, target, narrow)
    return out
