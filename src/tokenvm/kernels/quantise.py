"""Lossy KV formats: raw parts to quantised ones and back. docs/kv-formats.md says which bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tokenvm.kernels import checks
from tokenvm.kernels.native import native
from tokenvm.kernels.paging import PartGeometry, read_part


def quantise(
    sources: npt.NDArray[np.uint64], targets: npt.NDArray[np.uint64], geometry: PartGeometry
) -> None:
    """Quantise the raw parts (`geometry.raw`) at `sources` into the parts at `targets`, both uint64 [N] addresses.

    Every token of the raw parts counts, so they are full pages, or end in zeros. Raises ValueError for a
    geometry that is not lossy.
    """
    _refuse_raw(geometry)
    count = sources.shape[0]
    native().quantise(
        checks.array("sources", sources, (count,), np.uint64),
        checks.array("targets", targets, (count,), np.uint64),
        count,
        *geometry.sizes,
        geometry.format_number,
    )


def dequantise(address: int, geometry: PartGeometry) -> tuple[torch.Tensor, torch.Tensor]:
    """What the quantised part at an address stands for: (k, v), each [kv_heads, block_tokens, head_dim]."""
    _refuse_raw(geometry)
    raw = torch.empty(geometry.raw.part_bytes, dtype=torch.uint8)
    native().dequantise(address, *geometry.sizes, geometry.format_number, raw.data_ptr())
    return read_part(raw.data_ptr(), geometry.raw)


def _refuse_raw(geometry: PartGeometry) -> None:
    if not geometry.lossy:
        raise ValueError('a lossy format is wanted: PartGeometry(..., kv_format="int8")')
