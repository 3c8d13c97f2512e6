"""A ForwardContext in plain torch: every sequence's keys and values lie in one tensor a layer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from tokenvm.models.context import EndWeights, LayerWeights
from tokenvm.models.rope import cos_sin
from tokenvm.models.weights.pack import LoadedModel


class ContiguousContext:
    """One sequence that grows with each call of `feed`."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.positions = torch.empty(0, dtype=torch.int64)
        self.sample_rows = torch.empty(0, dtype=torch.int64)
        self.lent: list[int] = []
        spec = model.spec
        self._tables = [
            cos_sin(spec.rope_of(layer), spec.attention.head_dim, spec.max_model_len)
            for layer in range(spec.layers)
        ]
        self._keys: list[torch.Tensor] = [torch.empty(0)] * model.spec.layers
        self._values: list[torch.Tensor] = [torch.empty(0)] * model.spec.layers

    def feed(self, rows: int, sample_rows: list[int]) -> ContiguousContext:
        """Announce the next `rows` tokens and the rows among them whose logits are wanted."""
        begin = int(self.positions[-1]) + 1 if len(self.positions) else 0
        self.positions = torch.arange(begin, begin + rows)
        self.sample_rows = torch.tensor(sample_rows, dtype=torch.int64)
        return self

    def weights(self, layer: int) -> AbstractContextManager[LayerWeights]:
        self.lent.append(layer)
        return nullcontext(self.model.weights.layers[layer])

    def ends(self) -> AbstractContextManager[EndWeights]:
        return nullcontext(self.model.weights.ends)

    def attend(self, layer: int, qkv: torch.Tensor, out: torch.Tensor) -> None:
        spec = self.model.spec.attention
        heads = qkv.reshape(len(qkv), -1, spec.head_dim)
        q, k, v = heads.split([spec.q_heads, spec.kv_heads, spec.kv_heads], dim=1)
        keys = self._append(self._keys, layer, self._roped(k, layer))
        values = self._append(self._values, layer, v)
        group = spec.q_heads // spec.kv_heads
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = torch.einsum("mhd,thd->hmt", self._roped(q, layer), keys) * spec.scale
        ago = self.positions[:, None] - torch.arange(len(keys))[None, :]
        window = self.model.spec.window_of(layer) or len(keys) + 1
        hidden = (ago < 0) | (ago >= window)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out.copy_(torch.einsum("hmt,thd->mhd", weights, values).reshape(len(qkv), -1))

    def _roped(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        cos, sin = self._tables[layer][self.positions].unsqueeze(1).chunk(2, dim=2)
        low, high = x.chunk(2, dim=2)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=2)

    @staticmethod
    def _append(store: list[torch.Tensor], layer: int, rows: torch.Tensor) -> torch.Tensor:
        store[layer] = torch.cat((store[layer], rows)) if len(store[layer]) else rows.clone()
        return store[layer]
