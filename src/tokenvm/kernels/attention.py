"""Attention over paged KV."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tokenvm.kernels import checks
from tokenvm.kernels.native import native
from tokenvm.kernels.paging import PartGeometry
from tokenvm.kernels.state import AttentionState


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
    """Fold pages into the state of every row, in place.

    q: [M, Hq, D] in the geometry's dtype; positions: int64 [M]. segments: int32 [S, 4] of (row_begin,
    row_end, page_begin, page_count): rows of one sequence, or of several that share these pages, against them.
    first_page: int32 [S], the index in its sequences of a segment's first page. Segments that name the same row
    come in ascending page order. parts: uint64 [P], addresses.

    Token t is visible to a row at position p iff t <= p and, with a window, t > p - window. In a lossy format
    parts are quantised and show themselves only to rows of later pages: t < p - p % block_tokens. Query head h
    uses kv head h // (Hq / Hkv). Calls for a row come in ascending page position; then how pages are split
    over calls changes no bit. Raises ValueError if a range does not lie in its array, or pages do not ascend.
    """
    check_attend(state, q, segments, geometry, scale, window)
    rows, q_heads, head_dim = q.shape
    native().attend(
        *state.addresses(),
        checks.tensor("q", q, (rows, q_heads, head_dim), geometry.dtype),
        checks.tensor("positions", positions, (rows,), torch.int64),
        rows,
        q_heads,
        *geometry.sizes,
        *checks.segments(segments, first_page, parts),
        scale,
        window,
        geometry.format_number,
    )


def check_attend(
    state: AttentionState,
    q: torch.Tensor,
    segments: npt.NDArray[Any],
    geometry: PartGeometry,
    scale: float,
    window: int,
) -> None:
    """Raise ValueError unless the shapes and numbers of a call to attend fit together."""
    if q.dim() != 3 or q.shape != state.acc.shape or q.shape[2] != geometry.head_dim:
        raise ValueError(
            f"q {tuple(q.shape)} must have the shape of state.acc {tuple(state.acc.shape)} "
            f"and head_dim {geometry.head_dim}"
        )
    if q.shape[1] % geometry.kv_heads:
        raise ValueError(f"{q.shape[1]} query heads do not share {geometry.kv_heads} kv heads evenly")
    if segments.ndim != 2:
        raise ValueError(f"segments must have shape (S, 4), not {segments.shape}")
    if not scale > 0 or window < 0:
        raise ValueError(f"scale={scale} must be above 0 and window={window} not below 0")
