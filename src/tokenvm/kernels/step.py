"""Attention of the rows of one step: the calls of `paging`, `attention` and `state` on buffers that are made once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tokenvm.kernels import checks
from tokenvm.kernels.attention import check_attend
from tokenvm.kernels.native import native
from tokenvm.kernels.paging import PartGeometry
from tokenvm.kernels.state import AttentionState


class StepAttention:
    """Ropes, appends and attends for up to `capacity` rows, layer by layer: begin, then append, fold…, finish.

    cos_sin: float32 [P, head_dim], the cosines of head_dim/2 angles, then their sines; of one row for every position
    where P is 1. `scale` multiplies the dots;
    `window` is as in `kernels.attention.attend`. Bit for bit what the single calls give.
    """

    def __init__(
        self,
        geometry: PartGeometry,
        q_heads: int,
        scale: float,
        window: int,
        cos_sin: torch.Tensor,
        capacity: int,
    ) -> None:
        self.capacity = capacity
        self._geometry = geometry
        self._q_heads = q_heads
        self._sizes = geometry.sizes
        self._scale = scale
        self._format = geometry.format_number
        self._state = AttentionState.empty(capacity, q_heads, geometry.head_dim)
        self._q = torch.empty(capacity, q_heads, geometry.head_dim, dtype=geometry.dtype)
        check_attend(self._state, self._q, np.empty((0, 4), np.int32), geometry, scale, window)
        self._q_address = self._q.data_ptr()
        self._state_addresses = self._state.addresses()
        self._rows = 0
        self.follow(window, cos_sin)

    def follow(self, window: int, cos_sin: torch.Tensor) -> None:
        """Attend by another window and another rope from the next layer on."""
        if window < 0:
            raise ValueError(f"window={window} must not be below 0")
        self._rule = self._scale, window
        self._cos_sin, self._angles = cos_sin, checks.dimensions("cos_sin", cos_sin, 2)[0]
        self._cos_sin_address = checks.tensor(
            "cos_sin", cos_sin, (self._angles, self._geometry.head_dim), torch.float32
        )

    def begin(self, positions: npt.NDArray[np.int64], offsets: npt.NDArray[np.int32]) -> None:
        """Announce the rows of a step: positions int64 [M] in their sequences, offsets int32 [M] in their pages."""
        rows = len(positions)
        if rows > self.capacity:
            raise ValueError(f"{rows} rows do not fit buffers of {self.capacity}")
        self._rows = rows
        self._positions, self._offsets = positions, offsets
        self._positions_address = checks.array("positions", positions, (rows,), np.int64)
        self._first_angle = np.zeros(rows, np.int64)
        self._offsets_address = checks.array("offsets", offsets, (rows,), np.int32)

    def append(self, qkv: torch.Tensor, targets: npt.NDArray[np.uint64]) -> None:
        """Rope q and k, write k and v into the raw parts at `targets` (uint64 [M], addresses); forget the last layer.

        qkv: float32 [M, (q_heads + 2 kv_heads) * head_dim]. Raises ValueError on a position or offset out of range.
        """
        rows, heads = self._rows, self._q_heads + 2 * self._geometry.kv_heads
        native().rope_append(
            checks.tensor("qkv", qkv, (rows, heads * self._geometry.head_dim), torch.float32),
            rows,
            self._q_heads,
            *self._sizes,
            self._cos_sin_address,
            self._angles,
            self._positions_address if self._angles > 1 else self._first_angle.ctypes.data,
            checks.array("targets", targets, (rows,), np.uint64),
            self._offsets_address,
            self._q_address,
        )
        native().reset_state(*self._state_addresses, rows * self._q_heads, self._geometry.head_dim)

    def fold(
        self,
        segments: npt.NDArray[np.int32],
        first_page: npt.NDArray[np.int32],
        parts: npt.NDArray[np.uint64],
        *,
        raw: bool = False,
    ) -> None:
        """Fold pages into the rows' state; arguments and errors are those of `kernels.attention.attend`.

        `raw`: the parts are raw, though the geometry be lossy.
        """
        native().attend(
            *self._state_addresses,
            self._q_address,
            self._positions_address,
            self._rows,
            self._q_heads,
            *self._sizes,
            *checks.segments(segments, first_page, parts),
            *self._rule,
            0 if raw else self._format,
        )

    def finish(self, out: torch.Tensor) -> None:
        """Write out [M, q_heads * head_dim] in the geometry's dtype; a row that saw nothing gives 0."""
        rows, width = self._rows, self._q_heads * self._geometry.head_dim
        target = checks.tensor("out", out, (rows, width), self._geometry.dtype)
        native().finish_state(
            *self._state_addresses,
            rows * self._q_heads,
            self._geometry.head_dim,
            target,
            self._geometry.narrow,
            0,
        )
