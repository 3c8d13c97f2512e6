"""The model over staged pages with the logits of any rows: what the engine's runner does, for measurements."""

from __future__ import annotations

from typing import cast

import torch

from tokenvm.engine.context import PagedContext
from tokenvm.kernels.paging import PartGeometry
from tokenvm.kernels.state import AttentionState
from tokenvm.models.decoder import Activations, forward
from tokenvm.models.rope import cos_sin
from tokenvm.models.weights.pack import LoadedModel
from tokenvm.staging import Staged


class Forward:
    """One model, up to `max_rows` rows a pass, positions below `max_positions`."""

    def __init__(self, model: LoadedModel, geometry: PartGeometry, max_rows: int, max_positions: int) -> None:
        spec, heads = model.spec, model.spec.attention
        self._model = model
        self._geometry = geometry
        self._cos_sin = cos_sin(spec.rope, heads.head_dim, max_positions)
        self._activations = Activations.allocate(spec, max_rows, model.weights.dtype)
        self._state = AttentionState.empty(max_rows, heads.q_heads, heads.head_dim)

    def logits(self, ids: list[int], staged: object, sampled: list[int]) -> torch.Tensor:
        """Append `ids` to what `staged` holds and return the logits fp32 [len(sampled), vocab_size] of those rows.

        `staged` is a `Staged`, or has its `positions`, `offsets`, `targets` and `rounds`.
        """
        rows, whole = len(ids), self._state
        context = PagedContext(
            self._model.spec,
            self._model.weights,
            self._geometry,
            self._cos_sin,
            AttentionState(whole.acc[:rows], whole.peak[:rows], whole.mass[:rows]),
            cast(Staged, staged),
            torch.tensor(sampled, dtype=torch.int64),
        )
        tokens = torch.tensor(ids, dtype=torch.int64)
        with torch.inference_mode():
            return forward(self._model.spec, context, tokens, self._model.weights.dtype, self._activations)
