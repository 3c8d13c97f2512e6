"""The model over staged pages with the logits of any rows: what the engine's runner does, for measurements."""

from __future__ import annotations

from typing import cast

import torch

from tokenvm.engine.context import PagedContext
from tokenvm.kernels.paging import PartGeometry
from tokenvm.models.decoder import Decoder
from tokenvm.models.rope import cos_sin
from tokenvm.models.weights.pack import LoadedModel
from tokenvm.staging import Staged


class Forward:
    """One model, up to `max_rows` rows a pass, positions below `max_positions`."""

    def __init__(self, model: LoadedModel, geometry: PartGeometry, max_rows: int, max_positions: int) -> None:
        angles = cos_sin(model.spec.rope, model.spec.attention.head_dim, max_positions)
        self._context = PagedContext(model.spec, model.weights, geometry, angles, max_rows)
        self._decoder = Decoder(model.spec, model.weights.dtype, max_rows)

    def logits(self, ids: list[int], staged: object, sampled: list[int]) -> torch.Tensor:
        """Append `ids` to what `staged` holds and return the logits fp32 [len(sampled), vocab_size] of those rows.

        `staged` is a `Staged`, or has its `positions`, `offsets`, `targets` and `rounds`.
        """
        with torch.inference_mode():
            self._context.begin(cast(Staged, staged), sampled)
            return self._decoder.forward(self._context, torch.tensor(ids, dtype=torch.int64))
