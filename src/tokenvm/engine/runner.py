"""The model's side of a step: tokens in, logits out. Buffers are made once and reused."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tokenvm.engine.context import PagedContext
from tokenvm.engine.sampling.scoring import LogitRows
from tokenvm.kernels.paging import PartGeometry
from tokenvm.models.decoder import Activations
from tokenvm.models.spec import ModelSpec
from tokenvm.models.weights.pack import LoadedModel
from tokenvm.schedule.plan import Plan
from tokenvm.staging import Staged

Tap = Callable[[Plan, torch.Tensor], None]


PARTIAL_BYTES = 64 << 20
"""`kPartialBytes` of csrc/src/attention.cpp: the most that partial results of pages take."""

PARTIAL_ROWS = 1152
"""So many query rows (row, head) a thread have partial results at most: with more there are tasks enough without."""

TILE_ROWS = 192
"""`kTileRows` there: query rows that a thread attends at once."""


def workspace_bytes(
    spec: ModelSpec, rows: int, dtype: torch.dtype, sequences: int, block_tokens: int, threads: int
) -> int:
    """Return what a step of `rows` tokens needs beside weights and pages, the kernels' scratch included.

    No more rows have logits than sequences may run.
    """
    heads, inner = spec.attention, spec.mlp.intermediate
    number = (heads.head_dim + 2) * 4
    widest = max(spec.hidden, heads.out_columns, inner) + 31
    per_row = Activations.bytes_per_row(spec, dtype) + heads.q_heads * number
    per_row += (heads.out_columns + widest) * dtype.itemsize
    if inner % 16:
        per_row += 2 * inner * 4  # gates and ups, before they are multiplied
    sampled = 2 * min(rows, sequences) * (spec.vocab_size * 4 + spec.hidden * (4 + dtype.itemsize))
    ropes = {(spec.window_of(layer), spec.rope_of(layer)) for layer in range(spec.layers)}
    tables = sum(rope.kind != "none" for _, rope in ropes)
    angles = tables * spec.max_model_len * heads.head_dim * 4
    tiles = threads * TILE_ROWS * (3 * heads.head_dim + block_tokens + 16) * 4
    pages = -(-spec.max_model_len // block_tokens)
    partial_rows = min(rows * heads.q_heads, threads * PARTIAL_ROWS if threads > 1 else 0)
    return rows * per_row + sampled + angles + tiles + min(PARTIAL_BYTES, partial_rows * pages * number)


class Runner:
    """Runs a loaded model over staged pages.

    `tap`, if set, is shown each step's plan and logits: fp32 [S, vocab_size], rows in the order of `plan.sampled`.
    """

    def __init__(self, model: LoadedModel, geometry: PartGeometry, max_rows: int, max_positions: int) -> None:
        self.spec = model.spec
        self.tap: Tap | None = None
        self._context = PagedContext(model.spec, model.weights, geometry, max_positions, max_rows)
        self._decoder = model.make_decoder(model.spec, model.weights.dtype, max_rows)

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

    def attend_once(self, staged: Staged) -> None:
        """Attend in one layer, whatever the buffers hold: only what that needs of memory is meant."""
        rows, buffers = len(staged.positions), self._decoder.buffers
        with torch.inference_mode():
            self._context.begin(staged, [])
            self._context.attend(0, buffers.qkv[:rows], buffers.attended[:rows])
