"""The decoder, layer by layer. It owns no weights and sees no addresses; the context attends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from tokenvm.kernels.linear import PackedMatrix, gather_rows, linear
from tokenvm.kernels.norm import rms_norm
from tokenvm.kernels.tape import Tape
from tokenvm.models.context import EndWeights, ForwardContext, LayerWeights
from tokenvm.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Activations:
    """Buffers of one forward pass, each with a row per token.

    `hidden` is the residual stream, fp32 [M, hidden], and `qkv` a matrix output in fp32; `normed`, `attended`, `gated`
    are matrix inputs in the weight dtype. Only some specs need `projected`, fp32 [M, hidden], what is normalised before
    it is added to the stream, and `gates`, fp32 [M, 2 * intermediate]; else they have no columns.
    """

    hidden: torch.Tensor
    normed: torch.Tensor
    qkv: torch.Tensor
    attended: torch.Tensor
    gated: torch.Tensor
    projected: torch.Tensor
    gates: torch.Tensor

    @classmethod
    def allocate(cls, spec: ModelSpec, rows: int, dtype: torch.dtype) -> Activations:
        """Buffers for at most `rows` tokens, contents undefined."""
        return cls(
            hidden=torch.empty(rows, spec.hidden),
            normed=torch.empty(rows, spec.hidden, dtype=dtype),
            qkv=torch.empty(rows, spec.attention.qkv_rows),
            attended=torch.empty(rows, spec.attention.out_columns, dtype=dtype),
            gated=torch.empty(rows, spec.mlp.intermediate, dtype=dtype),
            projected=torch.empty(rows, _projected_columns(spec)),
            gates=torch.empty(rows, _gate_columns(spec)),
        )

    @staticmethod
    def bytes_per_row(spec: ModelSpec, dtype: torch.dtype) -> int:
        """Bytes that each further token adds."""
        fp32 = spec.hidden + spec.attention.qkv_rows + _projected_columns(spec) + _gate_columns(spec)
        return 4 * fp32 + dtype.itemsize * (spec.hidden + spec.attention.out_columns + spec.mlp.intermediate)


def _projected_columns(spec: ModelSpec) -> int:
    return spec.hidden if spec.norm.sandwich else 0


def _gate_columns(spec: ModelSpec) -> int:
    """SiLU has a product that gates as it goes."""
    return 0 if spec.mlp.activation == "silu" else 2 * spec.mlp.intermediate


class Forward(Protocol):
    """What computes logits for the rows of a step."""

    buffers: Activations

    def forward(self, ctx: ForwardContext, token_ids: torch.Tensor) -> torch.Tensor:
        """Compute the logits of the sampled rows: token_ids int64 [M] → fp32 [S, vocab_size], S ≥ 0."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """One layer's kernel calls before and after its attention, recorded for the weights that were lent then."""

    weights: LayerWeights
    enter: Tape
    leave: Tape


class Decoder:
    """Computes logits for up to `rows` tokens at once, on buffers made once; `dtype` is the weights' (bf16 or fp32).

    A layer's calls are recorded when its weights are first lent, and again if others are lent in their place.
    """

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, rows: int) -> None:
        self.spec = spec
        self.capacity = rows
        self.buffers = Activations.allocate(spec, rows, dtype)
        self._scale = float(torch.tensor(spec.embedding_scale).to(dtype))
        self._pieces: list[_Piece | None] = [None] * spec.layers

    def forward(self, ctx: ForwardContext, token_ids: torch.Tensor) -> torch.Tensor:
        """Compute the logits of the sampled rows: token_ids int64 [M] → fp32 [S, vocab_size], S ≥ 0.

        Raises ValueError if M is above the capacity.
        """
        rows, b = token_ids.shape[0], self.buffers
        if rows > self.capacity:
            raise ValueError(f"{rows} rows do not fit buffers of {self.capacity}")
        with ctx.ends() as ends:
            gather_rows(ends.embedding, token_ids, out=b.hidden[:rows])
        if self._scale != 1.0:
            b.hidden[:rows].mul_(self._scale)
        qkv, attended = b.qkv[:rows], b.attended[:rows]
        for layer in range(self.spec.layers):
            with ctx.weights(layer) as weights:
                piece = self._piece(layer, weights)
                piece.enter.play(rows)
                ctx.attend(layer, qkv, attended)
                piece.leave.play(rows)
        if not ctx.sample_rows.shape[0]:
            return torch.empty(0, self.spec.vocab_size)
        with ctx.ends() as ends:
            return self._logits(ctx, ends)

    def _piece(self, layer: int, weights: LayerWeights) -> _Piece:
        piece = self._pieces[layer]
        if piece is None or piece.weights is not weights:
            piece = _Piece(weights, self._enter(weights), self._leave(weights))
            self._pieces[layer] = piece
        return piece

    def _enter(self, weights: LayerWeights) -> Tape:
        b, tape, heads, eps = self.buffers, Tape(self.capacity), self.spec.attention, self.spec.norm.eps
        tape.rms_norm(b.hidden, weights.attn_norm, eps, b.normed)
        tape.linear(b.normed, weights.qkv, b.qkv)
        if weights.qkv_bias is not None:
            tape.add_rows(b.qkv, weights.qkv_bias)
        if weights.q_norm is not None:
            tape.norm_heads(b.qkv, 0, heads.q_heads, weights.q_norm, eps)
        if weights.k_norm is not None:
            tape.norm_heads(b.qkv, heads.q_heads, heads.kv_heads, weights.k_norm, eps)
        return tape

    def _leave(self, weights: LayerWeights) -> Tape:
        b, tape = self.buffers, Tape(self.capacity)
        self._add_product(tape, b.attended, weights.o, weights.attn_post_norm, weights.o_bias)
        tape.rms_norm(b.hidden, weights.mlp_norm, self.spec.norm.eps, b.normed)
        if self.spec.mlp.activation == "silu":
            tape.linear_silu_mul(b.normed, weights.gate_up, b.gated)
        else:
            tape.linear(b.normed, weights.gate_up, b.gates)
            tape.gelu_mul(b.gates, b.gated)
        self._add_product(tape, b.gated, weights.down, weights.mlp_post_norm)
        return tape

    def _add_product(
        self,
        tape: Tape,
        x: torch.Tensor,
        w: PackedMatrix,
        norm: torch.Tensor | None,
        bias: torch.Tensor | None = None,
    ) -> None:
        """Record hidden += x @ w.T + bias, normalised first if there is a norm for that."""
        b = self.buffers
        target = b.hidden if norm is None else b.projected
        (tape.linear_add if norm is None else tape.linear)(x, w, target)
        if bias is not None:
            tape.add_rows(target, bias)
        if norm is not None:
            tape.rms_norm(b.projected, norm, self.spec.norm.eps, b.projected)
            tape.add_rows(b.hidden, b.projected)

    def _logits(self, ctx: ForwardContext, ends: EndWeights) -> torch.Tensor:
        hidden = self.buffers.hidden[ctx.sample_rows]
        normed = rms_norm(hidden, ends.final_norm, self.spec.norm.eps, self.buffers.normed.dtype)
        return linear(normed, ends.lm_head)
