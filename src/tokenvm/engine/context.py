"""ForwardContext over staged pages: what a decoder sees of the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tokenvm.kernels.attention import attend
from tokenvm.kernels.paging import PartGeometry, rope_append
from tokenvm.kernels.state import AttentionState
from tokenvm.models.context import EndWeights, LayerWeights
from tokenvm.models.spec import ModelSpec
from tokenvm.models.weights.pack import ModelWeights
from tokenvm.staging import Staged


class PagedContext:
    """One forward pass over the rows of a step.

    `state` has room for the step's rows; `cos_sin` is fp32 [positions, head_dim]; `sample_rows` int64 [S].
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: ModelWeights,
        geometry: PartGeometry,
        cos_sin: torch.Tensor,
        state: AttentionState,
        staged: Staged,
        sample_rows: torch.Tensor,
    ) -> None:
        self._attention = spec.attention
        self._weights = weights
        self._geometry = geometry
        self._cos_sin = cos_sin
        self._state = state
        self._staged = staged
        self.positions = torch.from_numpy(staged.positions)
        self.sample_rows = sample_rows

    @contextmanager
    def weights(self, layer: int) -> Iterator[LayerWeights]:
        """See `ForwardContext.weights`."""
        yield self._weights.layers[layer]

    @contextmanager
    def ends(self) -> Iterator[EndWeights]:
        """See `ForwardContext.ends`."""
        yield self._weights.ends

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See `ForwardContext.attend`: append this step's tokens, then fold the pages in position order."""
        shape, staged, state = self._attention, self._staged, self._state
        targets = staged.targets(layer)
        q = rope_append(
            qkv, self._cos_sin, self.positions, targets, staged.offsets, self._geometry, shape.q_heads
        )
        state.reset(q.shape[0])
        for chunk, parts in staged.rounds(layer):
            attend(
                state,
                q,
                self.positions,
                chunk.segments,
                chunk.first_page,
                parts,
                self._geometry,
                shape.scale,
                shape.window,
            )
        out, _ = state.finish(self._geometry.dtype)
        return out.view(q.shape[0], shape.out_columns)
