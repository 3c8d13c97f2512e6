"""Checks that stand between Python and raw addresses. Each raises ValueError with what was expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

FLOATS = (torch.float32, torch.bfloat16)


def tensor(name: str, value: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """The address of a contiguous CPU tensor of this shape and dtype."""
    if value.dtype is not dtype or value.shape != shape or not value.is_contiguous() or value.is_cuda:
        raise ValueError(
            f"{name} must be a contiguous CPU tensor of {dtype} with shape {shape}, "
            f"not {value.dtype} with shape {tuple(value.shape)}, strides {value.stride()}, on {value.device}"
        )
    return value.data_ptr()


def array(name: str, value: np.ndarray[Any, Any], shape: tuple[int, ...], dtype: type[np.generic]) -> int:
    """The address of a contiguous numpy array of this shape and dtype."""
    if value.dtype != dtype or value.shape != shape or not value.flags.c_contiguous:
        raise ValueError(
            f"{name} must be a contiguous array of {np.dtype(dtype)} with shape {shape}, "
            f"not {value.dtype} with shape {value.shape}"
        )
    return int(value.ctypes.data)


def segments(
    rows_and_pages: np.ndarray[Any, Any], first_page: np.ndarray[Any, Any], parts: np.ndarray[Any, Any]
) -> tuple[int, int, int, int, int]:
    """Addresses of segments int32 [S, 4] and first_page int32 [S], S, the address of parts uint64 [P], P."""
    count, pages = len(rows_and_pages), len(parts)
    return (
        array("segments", rows_and_pages, (count, 4), np.int32),
        array("first_page", first_page, (count,), np.int32),
        count,
        array("parts", parts, (pages,), np.uint64),
        pages,
    )


def result(out: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, int]:
    """`out` (checked), or a new tensor, and its address."""
    if out is None:
        out = torch.empty(shape, dtype=dtype)
        return out, out.data_ptr()
    return out, tensor("out", out, shape, dtype)


def narrow(dtype: torch.dtype, name: str = "dtype") -> bool:
    """True for bfloat16, False for float32."""
    if dtype not in FLOATS:
        raise ValueError(f"{name} must be torch.bfloat16 or torch.float32, not {dtype}")
    return dtype is torch.bfloat16


def dimensions(name: str, value: torch.Tensor, count: int) -> torch.Size:
    """The shape of a tensor of `count` dimensions."""
    if value.dim() != count:
        raise ValueError(f"{name} must have {count} dimensions, not shape {tuple(value.shape)}")
    return value.shape
