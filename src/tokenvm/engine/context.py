"""ForwardContext over staged pages: what a decoder sees of the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tokenvm.kernels.paging import PartGeometry
from tokenvm.kernels.quantise import quantise
from tokenvm.kernels.step import StepAttention
from tokenvm.models.context import EndWeights, LayerWeights
from tokenvm.models.spec import ModelSpec
from tokenvm.models.weights.pack import ModelWeights
from tokenvm.staging import Staged


class PagedContext:
    """One forward pass after another, each over the rows of a step; `begin` says which.

    `cos_sin` is fp32 [positions, head_dim]; `rows` is the most that a step has.
    """

    sample_rows: torch.Tensor

    def __init__(
        self, spec: ModelSpec, weights: ModelWeights, geometry: PartGeometry, cos_sin: torch.Tensor, rows: int
    ) -> None:
        shape = spec.attention
        self._weights = weights
        self._geometry = geometry
        self._attention = StepAttention(geometry, shape.q_heads, shape.scale, shape.window, cos_sin, rows)

    def begin(self, staged: Staged, sample_rows: list[int]) -> None:
        """Turn to the next step: its pages, and the rows whose logits are wanted."""
        self._staged = staged
        self.positions = torch.from_numpy(staged.positions)
        self.sample_rows = torch.tensor(sample_rows, dtype=torch.int64)
        self._attention.begin(staged.positions, staged.offsets)

    @contextmanager
    def weights(self, layer: int) -> Iterator[LayerWeights]:
        """See `ForwardContext.weights`."""
        yield self._weights.layers[layer]

    @contextmanager
    def ends(self) -> Iterator[EndWeights]:
        """See `ForwardContext.ends`."""
        yield self._weights.ends

    def attend(self, layer: int, qkv: torch.Tensor, out: torch.Tensor) -> None:
        """See `ForwardContext.attend`: append this step's tokens, then fold the pages in position order."""
        attention, staged = self._attention, self._staged
        own = staged.own
        attention.append(qkv, staged.targets(layer))
        if own is not None and len(own.full):
            quantise(own.parts[layer][own.full], own.coded[layer], self._geometry)
        for chunk, parts in staged.rounds(layer):
            attention.fold(chunk.segments, chunk.first_page, parts)
        if own is not None:
            attention.fold(own.segments, own.first_page, own.parts[layer], raw=True)
        attention.finish(out)
