"""How a decoder sees the world: weights are lent to it, attention is done for it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from tokenvm.kernels.linear import PackedMatrix


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer, packed for the kernels. Norms and biases are fp32 [rows], those of q and k [head_dim].

    `qkv` holds the rows of q, k, v one after another; `gate_up` those of the gate, then of the up projection. What the
    spec does not ask for is None.
    """

    attn_norm: torch.Tensor
    qkv: PackedMatrix
    o: PackedMatrix
    mlp_norm: torch.Tensor
    gate_up: PackedMatrix
    down: PackedMatrix
    qkv_bias: torch.Tensor | None = None
    o_bias: torch.Tensor | None = None
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    attn_post_norm: torch.Tensor | None = None
    mlp_post_norm: torch.Tensor | None = None

    @property
    def matrices(self) -> tuple[PackedMatrix, ...]:
        """The matrices, in the order in which they are read."""
        return self.qkv, self.o, self.gate_up, self.down

    @property
    def vectors(self) -> tuple[torch.Tensor, ...]:
        """The norms and biases that there are."""
        extra = (
            self.qkv_bias,
            self.o_bias,
            self.q_norm,
            self.k_norm,
            self.attn_post_norm,
            self.mlp_post_norm,
        )
        return (self.attn_norm, self.mlp_norm, *(vector for vector in extra if vector is not None))


@dataclass(frozen=True, slots=True)
class EndWeights:
    """What lies before the first and after the last layer. A tied `lm_head` is the embedding itself."""

    embedding: PackedMatrix
    final_norm: torch.Tensor
    lm_head: PackedMatrix

    @classmethod
    def nothing(cls, dtype: torch.dtype) -> EndWeights:
        """No weights at all: another library's modules hold them."""
        empty = PackedMatrix(0, 0, dtype, torch.empty(0, dtype=torch.uint8), "none")
        return cls(empty, torch.empty(0), empty)


class ForwardContext(Protocol):
    """One forward pass of M rows (tokens of any number of sequences), S of which want logits."""

    @property
    def positions(self) -> torch.Tensor:
        """int64 [M]: the position of each row in its sequence, from 0."""

    @property
    def sample_rows(self) -> torch.Tensor:
        """int64 [S]: the rows whose logits are wanted."""

    def weights(self, layer: int) -> AbstractContextManager[LayerWeights]:
        """Lend a layer's weights until the block ends."""

    def ends(self) -> AbstractContextManager[EndWeights]:
        """Lend embedding, final norm and head until the block ends."""

    def attend(self, layer: int, qkv: torch.Tensor, out: torch.Tensor) -> None:
        """Rope, append and attend: qkv fp32 [M, (Hq + 2 Hkv) * D] → out [M, Hq * D] in the weight dtype.

        Waits for whatever pages it needs.
        """
