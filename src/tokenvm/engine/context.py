"""ForwardContext over staged pages: what a decoder sees of the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tokenvm.kernels.paging import PartGeometry
from tokenvm.kernels.quantise import quantise
from tokenvm.kernels.step import StepAttention
from tokenvm.models.context import EndWeights, LayerWeights
from tokenvm.models.rope import cos_sin
from tokenvm.models.spec import ModelSpec, RopeSpec
from tokenvm.models.weights.pack import ModelWeights
from tokenvm.staging import Staged


@dataclass(frozen=True, slots=True, eq=False)
class LayerRule:
    """What a layer's rows see, 0 for all tokens, and the rope table fp32 [positions, head_dim] of q and k."""

    window: int
    cos_sin: torch.Tensor


def layer_rules(spec: ModelSpec, positions: int) -> tuple[LayerRule, ...]:
    """Return the rule of each layer; layers with equal ones share one object."""
    rules: dict[tuple[int, RopeSpec], LayerRule] = {}
    for layer in range(spec.layers):
        key = spec.window_of(layer), spec.rope_of(layer)
        if key not in rules:
            rules[key] = LayerRule(key[0], cos_sin(key[1], spec.attention.head_dim, positions))
    return tuple(rules[spec.window_of(layer), spec.rope_of(layer)] for layer in range(spec.layers))


class PagedContext:
    """One forward pass after another, each over the rows of a step; `begin` says which.

    `positions` bounds those of tokens; `rows` is the most that a step has.
    """

    sample_rows: torch.Tensor

    def __init__(
        self, spec: ModelSpec, weights: ModelWeights, geometry: PartGeometry, positions: int, rows: int
    ) -> None:
        shape = spec.attention
        self._weights = weights
        self._geometry = geometry
        self._rules = layer_rules(spec, positions)
        self._current = self._rules[0]
        self._attention = StepAttention(
            geometry, shape.q_heads, shape.scale, self._current.window, self._current.cos_sin, rows
        )

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
        attention, staged, rule = self._attention, self._staged, self._rules[layer]
        if rule is not self._current:
            attention.follow(rule.window, rule.cos_sin)
            self._current = rule
        own = staged.own
        attention.append(qkv, staged.targets(layer))
        if own is not None and len(own.full):
            quantise(own.parts[layer][own.full], own.coded[layer], self._geometry)
        for chunk, parts in staged.rounds(layer):
            attention.fold(chunk.segments, chunk.first_page, parts)
        if own is not None:
            attention.fold(own.segments, own.first_page, own.parts[layer], raw=True)
        attention.finish(out)
