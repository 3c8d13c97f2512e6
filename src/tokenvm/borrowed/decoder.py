"""A decoder whose layers are Transformers' modules; the context attends."""

from __future__ import annotations

from typing import Any

import torch

from tokenvm.borrowed.attention import Attends, Call
from tokenvm.models.context import ForwardContext
from tokenvm.models.decoder import Activations
from tokenvm.models.spec import ModelSpec


class BorrowedDecoder:
    """Computes logits for up to `rows` tokens at once with a module tree; `dtype` is its weights'.

    Rows of any number of sequences go through the modules side by side, as one sequence whose positions are given: only
    attention may look from row to row, and that is done by the context. The modules are outside the row law.
    """

    def __init__(self, module: Any, spec: ModelSpec, dtype: torch.dtype, rows: int) -> None:
        self.capacity = rows
        self.buffers = Activations.allocate(spec, rows, dtype)
        self._module = module
        self._vocab_size = spec.vocab_size

    def forward(self, ctx: ForwardContext, token_ids: torch.Tensor) -> torch.Tensor:
        """See `tokenvm.models.decoder.Decoder.forward`."""
        rows = token_ids.shape[0]
        if rows > self.capacity:
            raise ValueError(f"{rows} rows do not fit buffers of {self.capacity}")
        logits = run(self._module, token_ids, ctx.positions, ctx.sample_rows, _Pass(ctx, self.buffers, rows))
        return logits.reshape(-1, self._vocab_size).float()


def run(
    module: Any, token_ids: torch.Tensor, positions: torch.Tensor, wanted: torch.Tensor, attends: Attends
) -> torch.Tensor:
    """Run rows through a module tree: token_ids, positions int64 [M] → logits [S, vocab_size] of the rows `wanted`."""
    answer = module(
        input_ids=token_ids[None],
        position_ids=positions[None],
        use_cache=False,
        logits_to_keep=wanted,
        tokenvm_pass=attends,
    )
    logits: torch.Tensor = answer.logits[0]
    return logits


class _Pass:
    """One forward pass: lays q, k and v side by side for the context, in the decoder's buffers."""

    def __init__(self, ctx: ForwardContext, buffers: Activations, rows: int) -> None:
        self._ctx = ctx
        self._qkv, self._out = buffers.qkv[:rows], buffers.attended[:rows]

    def attend(self, call: Call) -> torch.Tensor:
        rows = self._qkv.shape[0]
        torch.cat([x.reshape(rows, -1).float() for x in (call.q, call.k, call.v)], dim=1, out=self._qkv)
        self._ctx.attend(call.layer, self._qkv, self._out)
        return self._out.view(call.q.shape).to(call.q.dtype, copy=True)
