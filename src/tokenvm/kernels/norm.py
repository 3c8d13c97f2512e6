"""Kernels that work on rows of activations. Activations are float32; results are float32 or bfloat16."""

from __future__ import annotations

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
    rows, both = checks.dimensions("gate_up", gate_up, 2)
    if both % 2:
        raise ValueError(f"gate_up must have an even number of columns, not {both}")
    source = checks.tensor("gate_up", gate_up, (rows, both), torch.float32)
    narrow = checks.narrow(out_dtype, "out_dtype")
    out, target = checks.result(out, (rows, both // 2), out_dtype)
    native().silu_mul(source, rows, both // 2, target, narrow)
    return out


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
