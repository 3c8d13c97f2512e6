"""Every kernel in plain torch: the specification. Same signatures and side effects as the native ones.

Dots run in float64 and are rounded once, so results agree with the native kernels within rounding, not bit
for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from tokenvm.kernels.linear import PackedMatrix
from tokenvm.kernels.paging import PartGeometry
from tokenvm.kernels.state import AttentionState


def unpack(w: PackedMatrix) -> torch.Tensor:
    """The weight [N, K] of a packed matrix, in its dtype."""
    storage = w.storage.clone().view(w.dtype)
    blocks = -(-w.rows // 16)
    if w.format == "fp32-n16":
        plain = storage.view(blocks, w.columns, 16).permute(0, 2, 1)
    else:
        plain = storage.view(blocks, -1, 16, 16, 2).permute(0, 3, 1, 2, 4)
    return plain.reshape(blocks * 16, -1)[: w.rows, : w.columns].contiguous()


def linear(x: torch.Tensor, w: PackedMatrix, out: torch.Tensor | None = None) -> torch.Tensor:
    """See tokenvm.kernels.linear.linear."""
    return _into(out, (x.double() @ unpack(w).double().T).float())


def linear_add(x: torch.Tensor, w: PackedMatrix, out: torch.Tensor) -> torch.Tensor:
    """See tokenvm.kernels.linear.linear_add."""
    return out.add_(linear(x, w))


def linear_silu_mul(
    x: torch.Tensor, w: PackedMatrix, out_dtype: torch.dtype, out: torch.Tensor | None = None
) -> torch.Tensor:
    """See tokenvm.kernels.linear.linear_silu_mul."""
    return silu_mul(linear(x, w), out_dtype, out)


def gather_rows(w: PackedMatrix, ids: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """See tokenvm.kernels.linear.gather_rows."""
    return _into(out, unpack(w)[ids].float())


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out_dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See tokenvm.kernels.norm.rms_norm."""
    mean = x.double().square().mean(-1, keepdim=True)
    return _into(out, (x.double() / torch.sqrt(mean + eps) * weight.double()).float().to(out_dtype))


def add_rms_norm(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out_dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See tokenvm.kernels.norm.add_rms_norm."""
    x += delta
    return rms_norm(x, weight, eps, out_dtype, out)


def silu_mul(gate_up: torch.Tensor, out_dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
    """See tokenvm.kernels.norm.silu_mul."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return _into(out, (gate * torch.sigmoid(gate) * up).float().to(out_dtype))


def gelu_mul(gate_up: torch.Tensor, out_dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
    """See tokenvm.kernels.norm.gelu_mul."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return _into(out, (torch.nn.functional.gelu(gate, approximate="tanh") * up).float().to(out_dtype))


def norm_heads(x: torch.Tensor, first: int, count: int, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See tokenvm.kernels.norm.norm_heads."""
    x[:, first : first + count] = rms_norm(x[:, first : first + count], weight, eps, torch.float32)
    return x


def add_rows(x: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """See tokenvm.kernels.norm.add_rows."""
    return x.add_(added)


def cast(x: torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
    """See tokenvm.kernels.norm.cast."""
    return _into(out, x.to(dtype, copy=True))


def read_part(address: int, geometry: PartGeometry) -> tuple[torch.Tensor, torch.Tensor]:
    """See tokenvm.kernels.paging.read_part."""
    keys, values = _views(address, geometry)
    shape = (geometry.kv_heads, geometry.block_tokens, geometry.head_dim)
    return keys.permute(0, 2, 1, 3).reshape(shape), values.permute(0, 1, 3, 2).reshape(shape)


def write_part(address: int, geometry: PartGeometry, k: torch.Tensor, v: torch.Tensor) -> None:
    """See tokenvm.kernels.paging.write_part."""
    keys, values = _views(address, geometry)
    H, T, D, w = geometry.kv_heads, geometry.block_tokens, geometry.head_dim, keys.shape[-1]
    keys.copy_(k.view(H, T, D // w, w).permute(0, 2, 1, 3))
    values.copy_(v.view(H, T // w, w, D).permute(0, 1, 3, 2))


def quantise(
    sources: npt.NDArray[np.uint64], targets: npt.NDArray[np.uint64], geometry: PartGeometry
) -> None:
    """See tokenvm.kernels.quantise.quantise."""
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        raw = read_part(source, geometry.raw)
        for x, (codes, scales, shared) in zip(raw, _coded_views(target, geometry), strict=True):
            scale = _scale_of(x.float(), shared, _LARGEST[geometry.kv_format])
            scales.copy_(scale)
            codes.copy_(_encode(x.float(), scale, geometry.kv_format).view(codes.shape))


def dequantise(address: int, geometry: PartGeometry) -> tuple[torch.Tensor, torch.Tensor]:
    """See tokenvm.kernels.quantise.dequantise."""
    shape = (geometry.kv_heads, geometry.block_tokens, geometry.head_dim)
    kind = torch.int8 if geometry.kv_format == "int8" else torch.float8_e4m3fn
    k, v = (
        (codes.reshape(shape).view(kind).float() * scales).to(geometry.dtype).contiguous()
        for codes, scales, _ in _coded_views(address, geometry)
    )
    return k, v


def rope_append(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    parts: npt.NDArray[np.uint64],
    offsets: npt.NDArray[np.int32],
    geometry: PartGeometry,
    q_heads: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See tokenvm.kernels.paging.rope_append."""
    heads = qkv.view(qkv.shape[0], -1, geometry.head_dim)
    roped = _rope(heads[:, : q_heads + geometry.kv_heads], cos_sin[positions]).to(geometry.dtype)
    v = heads[:, q_heads + geometry.kv_heads :].to(geometry.dtype)
    for row, (address, token) in enumerate(zip(parts.tolist(), offsets.tolist(), strict=True)):
        k_part, v_part = read_part(address, geometry)
        k_part[:, token], v_part[:, token] = roped[row, q_heads:], v[row]
        write_part(address, geometry, k_part, v_part)
    return _into(out, roped[:, :q_heads].contiguous())


def finish(state: AttentionState, out_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """See tokenvm.kernels.state.AttentionState.finish."""
    mass = torch.where(state.mass > 0, state.mass, torch.ones_like(state.mass))
    return (state.acc / mass[..., None]).to(out_dtype), state.peak + torch.log(mass)


def attend(
    state: AttentionState,
    q: torch.Tensor,
    positions: torch.Tensor,
    segments: npt.NDArray[np.int32],
    first_page: npt.NDArray[np.int32],
    parts: npt.NDArray[np.uint64],
    geometry: PartGeometry,
    scale: float,
    window: int = 0,
) -> None:
    """See tokenvm.kernels.attention.attend."""
    for (row_begin, row_end, page_begin, page_count), first in zip(
        segments.tolist(), first_page.tolist(), strict=True
    ):
        for page in range(page_count):
            read = dequantise if geometry.lossy else read_part
            k, v = read(int(parts[page_begin + page]), geometry)
            start = (first + page) * geometry.block_tokens
            for row in range(row_begin, row_end):
                visible = _visible(int(positions[row]), start, geometry.block_tokens, window)
                if geometry.lossy:
                    visible &= int(positions[row]) >= start + geometry.block_tokens
                if visible.any():
                    _fold(state, row, *_page(q[row], k[:, visible], v[:, visible], scale))


def _into(out: torch.Tensor | None, value: torch.Tensor) -> torch.Tensor:
    return value if out is None else out.copy_(value)


def _views(address: int, geometry: PartGeometry) -> tuple[torch.Tensor, torch.Tensor]:
    """K [Hkv, D/w, T, w] and V [Hkv, T/w, D, w] as views of the part's own bytes."""
    raw = (ctypes.c_uint8 * geometry.part_bytes).from_address(address)
    H, T, D, w = geometry.kv_heads, geometry.block_tokens, geometry.head_dim, 2 if geometry.narrow else 1
    both = torch.frombuffer(raw, dtype=geometry.dtype).view(H, 2, T * D)
    return both[:, 0].view(H, D // w, T, w), both[:, 1].view(H, T // w, D, w)


def _rope(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos_sin[:, None].chunk(2, dim=-1)
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def _visible(position: int, start: int, tokens: int, window: int) -> torch.Tensor:
    t = torch.arange(start, start + tokens)
    return (t <= position) & (t > position - window) if window else t <= position


def _page(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(acc [Hq, D], peak [Hq], mass [Hq]) of one row over the visible tokens of one page."""
    group = q.shape[0] // k.shape[0]
    keys, values = k.repeat_interleave(group, 0).double(), v.repeat_interleave(group, 0).double()
    scores = torch.einsum("hd,htd->ht", q.double(), keys).float() * scale
    peak = scores.amax(-1)
    p = torch.exp(scores - peak[:, None])
    return torch.einsum("ht,htd->hd", p.to(q.dtype).double(), values).float(), peak, p.sum(-1)


def _fold(state: AttentionState, row: int, acc: torch.Tensor, peak: torch.Tensor, mass: torch.Tensor) -> None:
    top = torch.maximum(state.peak[row], peak)
    a, b = torch.exp(state.peak[row] - top), torch.exp(peak - top)
    state.acc[row] = acc * b[:, None] + state.acc[row] * a[:, None]
    state.mass[row] = mass * b + state.mass[row] * a
    state.peak[row] = top


_LARGEST: Final[Mapping[str, float]] = {"int8": 127.0, "fp8": 448.0}


def _coded_views(
    address: int, geometry: PartGeometry
) -> list[tuple[torch.Tensor, torch.Tensor, tuple[int, int]]]:
    """Of keys and of values, views of the part's own bytes and which dims of [Hkv, T, D] share a scale.

    Codes are uint8 [Hkv, T, D/w, w] and [Hkv, T/w, w, D], scales float32 with dims as [Hkv, T, D] or 1.
    """
    H, T, D, w = geometry.kv_heads, geometry.block_tokens, geometry.head_dim, 2 if geometry.narrow else 1
    raw = (ctypes.c_uint8 * geometry.part_bytes).from_address(address)
    heads = torch.frombuffer(raw, dtype=torch.uint8).view(H, -1)
    keys = heads[:, : T * D].view(H, D // w, T, w).permute(0, 2, 1, 3)
    values = heads[:, T * D : 2 * T * D].view(H, T // w, D, w).permute(0, 1, 3, 2)
    scales = heads[:, 2 * T * D :].view(torch.float32)
    if geometry.kv_format == "int8":
        k_scales, v_scales = scales[:, :D].view(H, 1, D), scales[:, D : D + T].view(H, T, 1)
        return [(keys, k_scales, (1, 1)), (values, v_scales, (2, 2))]
    return [(keys, scales[:, :1].view(H, 1, 1), (1, 2)), (values, scales[:, 1:2].view(H, 1, 1), (1, 2))]


def _scale_of(x: torch.Tensor, shared: tuple[int, int], largest: float) -> torch.Tensor:
    """The scales: 0 where they are no normal number, NaN beside an element that is not finite."""
    scale = x.abs().amax(shared[0], keepdim=True).amax(shared[1], keepdim=True) / largest
    return torch.where(scale.isfinite(), torch.where(scale < 2.0**-126, 0.0, scale), torch.nan)


def _encode(x: torch.Tensor, scale: torch.Tensor, kv_format: str) -> torch.Tensor:
    """Codes uint8, rounded to nearest even; what is no number gets the least code."""
    largest = _LARGEST[kv_format]
    inverse = torch.where(scale > 0, 1.0 / scale, 0.0)
    scaled = (x * inverse).nan_to_num(nan=-largest).clamp(-largest, largest)
    codes = scaled.round().to(torch.int8) if kv_format == "int8" else scaled.to(torch.float8_e4m3fn)
    return codes.view(torch.uint8)
