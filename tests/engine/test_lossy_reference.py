"""What a lossy engine computes, against the reference kernels told in so many words which page is read how."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_engine import BLOCK_TOKENS, prompt, running, speak, tiny_model

from tokenvm.kernels import reference
from tokenvm.kernels.paging import PartGeometry
from tokenvm.kernels.state import AttentionState
from tokenvm.models.context import EndWeights, LayerWeights
from tokenvm.models.decoder import Decoder
from tokenvm.models.rope import cos_sin
from tokenvm.models.weights.pack import LoadedModel


class PlainLossyContext:
    """All rows of one sequence at once: row by row, earlier pages quantised, its own page raw."""

    def __init__(self, model: LoadedModel, kv_format: str, rows: int) -> None:
        heads = model.spec.attention
        self.model = model
        self.geometry = PartGeometry(
            heads.kv_heads, heads.head_dim, BLOCK_TOKENS, model.weights.dtype, kv_format
        )
        self.positions = torch.arange(rows)
        self.sample_rows = torch.tensor([rows - 1])
        self._angles = cos_sin(model.spec.rope, heads.head_dim, rows)

    def weights(self, layer: int) -> AbstractContextManager[LayerWeights]:
        return nullcontext(self.model.weights.layers[layer])

    def ends(self) -> AbstractContextManager[EndWeights]:
        return nullcontext(self.model.weights.ends)

    def attend(self, layer: int, qkv: torch.Tensor, out: torch.Tensor) -> None:
        heads, rows, T = self.model.spec.attention, len(self.positions), BLOCK_TOKENS
        pages = -(-rows // T)
        raw = torch.zeros(pages, self.geometry.raw.part_bytes, dtype=torch.uint8)
        coded = torch.zeros(pages, self.geometry.part_bytes, dtype=torch.uint8)
        raw_at, coded_at = (np.array([p.data_ptr() for p in x], np.uint64) for x in (raw, coded))
        page, offsets = np.divmod(np.arange(rows), T)
        q = reference.rope_append(
            qkv,
            self._angles,
            self.positions,
            raw_at[page],
            offsets.astype(np.int32),
            self.geometry.raw,
            heads.q_heads,
        )
        reference.quantise(raw_at[: rows // T], coded_at[: rows // T], self.geometry)
        state = AttentionState.empty(rows, heads.q_heads, heads.head_dim)
        for row in range(rows):
            for index in range(page[row] + 1):
                own = index == page[row]
                geometry = self.geometry.raw if own else self.geometry
                segments = np.array([[row, row + 1, index, 1]], np.int32)
                parts = raw_at if own else coded_at
                reference.attend(
                    state,
                    q,
                    self.positions,
                    segments,
                    np.array([index], np.int32),
                    parts,
                    geometry,
                    heads.scale,
                )
        out.copy_(reference.finish(state, out.dtype)[0].view(rows, -1))


@pytest.mark.parametrize("length", [15, 16, 17, 70])
@pytest.mark.parametrize("kv_format", ["int8", "fp8"])
def test_logits_are_those_of_the_reference(kv_format: str, length: int, tmp_path: Path) -> None:
    model, ids, wanted = tiny_model(torch.float32), list(prompt(length)), []
    with running(model, tmp_path, device_pages=6, kv_cache_dtype=kv_format) as engine:
        (said,) = speak(engine, [ids], 3)
    with running(model, tmp_path) as engine:
        (exact,) = speak(engine, [ids], 3)
    for token in said.tokens:
        context = PlainLossyContext(model, kv_format, len(ids))
        wanted.append(Decoder(model.spec, torch.float32, len(ids)).forward(context, torch.tensor(ids))[0])
        ids.append(token)
    got, raw = (
        torch.stack([torch.frombuffer(bytearray(row), dtype=torch.float32) for row in one.rows])
        for one in (said, exact)
    )
    expected = torch.stack(wanted)
    if length >= BLOCK_TOKENS:
        assert (got - raw)[-1].norm() > 1e-3 * expected[-1].norm(), "the format shows"
    assert (got - expected).norm() < 1e-4 * expected.norm()
