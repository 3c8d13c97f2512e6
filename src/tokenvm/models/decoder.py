"""The decoder, layer by layer. It owns no weights and sees no addresses; the context attends."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenvm.kernels.linear import gather_rows, linear
from tokenvm.kernels.norm import rms_norm
from tokenvm.kernels.rows import MatrixRows, matrix_rows_bytes
from tokenvm.kernels.tape import Tape
from tokenvm.kernels.weight_memory import WeightMemory
from tokenvm.models.context import EndWeights, ForwardContext, LayerWeights
from tokenvm.models.spec import ModelSpec

_ROWS_STEP = 16
"""Rows of matrix inputs come in such groups."""

_LINE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Activations:
    """Buffers of one forward pass, each with a row per token.

    `hidden` is the residual stream, fp32 [M, hidden], and `qkv` a matrix output in fp32; `attended` is a matrix input
    in the weight dtype. `normed` and `gated` are matrix inputs too, which lie as the product behind them reads them.
    """

    hidden: torch.Tensor
    qkv: torch.Tensor
    attended: torch.Tensor
    normed: MatrixRows
    gated: MatrixRows

    @classmethod
    def allocate(cls, spec: ModelSpec, rows: int, dtype: torch.dtype) -> Activations:
        """Buffers for at most `rows` tokens, contents undefined."""
        heads, inner, fp32 = spec.attention, spec.mlp.intermediate, torch.float32
        memory = WeightMemory(
            -(-rows // _ROWS_STEP) * _ROWS_STEP * cls.bytes_per_row(spec, dtype) + 5 * _LINE_BYTES
        )

        def plain(width: int, kind: torch.dtype) -> torch.Tensor:
            return memory.take(rows * width * kind.itemsize).view(kind).view(rows, width)

        def prepared(width: int) -> MatrixRows:
            return MatrixRows.over(memory.take(matrix_rows_bytes(rows, width, dtype)), rows, width, dtype)

        return cls(
            hidden=plain(spec.hidden, fp32),
            qkv=plain(heads.qkv_rows, fp32),
            attended=plain(heads.out_columns, dtype),
            normed=prepared(spec.hidden),
            gated=prepared(inner),
        )

    @staticmethod
    def bytes_per_row(spec: ModelSpec, dtype: torch.dtype) -> int:
        """Bytes that each further token adds."""
        plain = 4 * (spec.hidden + spec.attention.qkv_rows) + dtype.itemsize * spec.attention.out_columns
        return plain + sum(
            matrix_rows_bytes(_ROWS_STEP, width, dtype) // _ROWS_STEP
            for width in (spec.hidden, spec.mlp.intermediate)
        )


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
        b, tape = self.buffers, Tape(self.capacity)
        tape.rms_norm(b.hidden, weights.attn_norm, self.spec.norm.eps, b.normed)
        tape.linear(b.normed, weights.qkv, b.qkv)
        return tape

    def _leave(self, weights: LayerWeights) -> Tape:
        b, tape = self.buffers, Tape(self.capacity)
        tape.linear_add(b.attended, weights.o, b.hidden)
        tape.rms_norm(b.hidden, weights.mlp_norm, self.spec.norm.eps, b.normed)
        tape.linear_silu_mul(b.normed, weights.gate_up, b.gated)
        tape.linear_add(b.gated, weights.down, b.hidden)
        return tape

    def _logits(self, ctx: ForwardContext, ends: EndWeights) -> torch.Tensor:
        rows = self.buffers.hidden.numpy().take(ctx.sample_rows.numpy(), axis=0)
        hidden = torch.from_numpy(rows)  # torch's own threads would spin on the kernels' cores afterwards
        normed = rms_norm(hidden, ends.final_norm, self.spec.norm.eps, self.buffers.normed.dtype)
        return linear(normed, ends.lm_head)
