"""The decoder, layer by layer. It owns no weights and sees no addresses; the context attends."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenvm.kernels.linear import gather_rows, linear
from tokenvm.kernels.norm import add_rms_norm, silu_mul
from tokenvm.models.context import EndWeights, ForwardContext, LayerWeights
from tokenvm.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Activations:
    """Buffers of one forward pass, each with a row per token; kept and reused by whoever calls `forward`.

    `hidden` is the residual stream and `delta` what the next norm adds to it (both fp32 [M, hidden]).
    `normed`, `gated` are matrix inputs in the weight dtype; `qkv`, `gate_up` are fp32 matrix outputs.
    """

    hidden: torch.Tensor
    delta: torch.Tensor
    normed: torch.Tensor
    qkv: torch.Tensor
    gate_up: torch.Tensor
    gated: torch.Tensor

    @classmethod
    def allocate(cls, spec: ModelSpec, rows: int, dtype: torch.dtype) -> Activations:
        """Buffers for at most `rows` tokens, contents undefined."""
        return cls(
            hidden=torch.empty(rows, spec.hidden),
            delta=torch.empty(rows, spec.hidden),
            normed=torch.empty(rows, spec.hidden, dtype=dtype),
            qkv=torch.empty(rows, spec.attention.qkv_rows),
            gate_up=torch.empty(rows, 2 * spec.mlp.intermediate),
            gated=torch.empty(rows, spec.mlp.intermediate, dtype=dtype),
        )

    @staticmethod
    def bytes_per_row(spec: ModelSpec, dtype: torch.dtype) -> int:
        """Bytes that each further token adds."""
        fp32 = 2 * spec.hidden + spec.attention.qkv_rows + 2 * spec.mlp.intermediate
        return 4 * fp32 + dtype.itemsize * (spec.hidden + spec.mlp.intermediate)

    @property
    def capacity(self) -> int:
        """The most rows that fit."""
        return self.hidden.shape[0]

    def first(self, rows: int) -> Activations:
        """The same buffers, cut to `rows` tokens."""
        return Activations(
            self.hidden[:rows],
            self.delta[:rows],
            self.normed[:rows],
            self.qkv[:rows],
            self.gate_up[:rows],
            self.gated[:rows],
        )


def forward(
    spec: ModelSpec,
    ctx: ForwardContext,
    token_ids: torch.Tensor,
    dtype: torch.dtype,
    activations: Activations | None = None,
) -> torch.Tensor:
    """Compute the logits of the sampled rows: token_ids int64 [M] → fp32 [S, vocab_size], S ≥ 0.

    `dtype` is the weights' (bf16 or fp32). `activations`, with room for M rows, is allocated if not given.
    """
    rows = token_ids.shape[0]
    buffers = (activations or Activations.allocate(spec, rows, dtype)).first(rows)
    with ctx.ends() as ends:
        gather_rows(ends.embedding, token_ids, out=buffers.hidden)
    buffers.delta.zero_()
    for layer in range(spec.layers):
        with ctx.weights(layer) as weights:
            _attention(spec, ctx, layer, weights, buffers)
            _mlp(spec, weights, buffers)
    if not ctx.sample_rows.shape[0]:
        return torch.empty(0, spec.vocab_size)
    with ctx.ends() as ends:
        return _logits(spec, ctx, ends, buffers)


def _attention(
    spec: ModelSpec, ctx: ForwardContext, layer: int, weights: LayerWeights, b: Activations
) -> None:
    add_rms_norm(b.hidden, b.delta, weights.attn_norm, spec.norm.eps, b.normed.dtype, out=b.normed)
    linear(b.normed, weights.qkv, out=b.qkv)
    attended = ctx.attend(layer, b.qkv)
    linear(attended, weights.o, out=b.delta)


def _mlp(spec: ModelSpec, weights: LayerWeights, b: Activations) -> None:
    add_rms_norm(b.hidden, b.delta, weights.mlp_norm, spec.norm.eps, b.normed.dtype, out=b.normed)
    linear(b.normed, weights.gate_up, out=b.gate_up)
    silu_mul(b.gate_up, b.gated.dtype, out=b.gated)
    linear(b.gated, weights.down, out=b.delta)


def _logits(spec: ModelSpec, ctx: ForwardContext, ends: EndWeights, b: Activations) -> torch.Tensor:
    hidden, delta = b.hidden[ctx.sample_rows], b.delta[ctx.sample_rows]
    normed = add_rms_norm(hidden, delta, ends.final_norm, spec.norm.eps, b.normed.dtype)
    return linear(normed, ends.lm_head)
