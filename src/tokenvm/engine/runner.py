"""The model's side of a step: tokens in, logits out. Buffers are made once and reused."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tokenvm.engine.context import PagedContext
from tokenvm.engine.sampling.scoring import LogitRows
from tokenvm.kernels.paging import PartGeometry
from tokenvm.models.decoder import Activations, Decoder
from tokenvm.models.rope import cos_sin
from tokenvm.models.spec import ModelSpec
from tokenvm.models.weights.pack import LoadedModel
from tokenvm.schedule.plan import Plan
from tokenvm.staging import Staged

Tap = Callable[[Plan, torch.Tensor], None]


def workspace_bytes(spec: ModelSpec, rows: int, dtype: torch.dtype, sequences: int, pages_each: int) -> int:
    """Return what a step of `rows` tokens needs beside weights and pages, the kernels' scratch included.

    No more rows have logits than sequences may run.
    """
    heads = spec.attention
    state_bytes = heads.q_heads * (heads.head_dim + 2) * 4
    per_row = Activations.bytes_per_row(spec, dtype) + state_bytes
    per_row += (heads.out_columns + spec.mlp.intermediate) * dtype.itemsize
    partials = sequences * pages_each * state_bytes
    tables = spec.max_model_len * heads.head_dim * 4 + sequences * spec.vocab_size * 4
    return rows * per_row + partials + tables


class Runner:
    """Runs a loaded model over staged pages.

    `tap`, if set, is shown each step's plan and logits: fp32 [S, vocab_size], rows in the order of `plan.sampled`.
    """

    def __init__(self, model: LoadedModel, geometry: PartGeometry, max_rows: int, max_positions: int) -> None:
        self.spec = model.spec
        self.tap: Tap | None = None
        angles = cos_sin(model.spec.rope, model.spec.attention.head_dim, max_positions)
        self._context = PagedContext(model.spec, model.weights, geometry, angles, max_rows)
        self._decoder = Decoder(model.spec, model.weights.dtype, max_rows)

    def run(self, plan: Plan, tokens: list[int], staged: Staged, *, every_row: bool = False) -> torch.Tensor:
        """Compute logits fp32 [S, vocab_size] of the rows that sample or score, in the order of `LogitRows`.

        `tokens` are the plan's, in its order. `every_row`: of all rows, in theirs.
        """
        wanted = LogitRows.of(plan)
        rows = list(range(len(tokens))) if every_row else list(wanted.rows)
        with torch.inference_mode():
            self._context.begin(staged, rows)
            logits = self._decoder.forward(self._context, torch.tensor(tokens, dtype=torch.int64))
        if self.tap is not None:
            self.tap(plan, logits[list(wanted.sampled)] if wanted.scored else logits)
        return logits
