"""The running state of attention, and the merge of finished states."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenvm.kernels import checks
from tokenvm.kernels.native import native


@dataclass
class AttentionState:
    """What attention has gathered so far for M rows and Hq heads, all float32.

    acc [M, Hq, D]: the sum of values weighted by exp(score - peak). peak [M, Hq]: the largest score, -inf if
    nothing was seen. mass [M, Hq]: the sum of the weights. Pages are folded in position order (online
    softmax, Milakov and Gimelshein, arXiv:1805.02867).
    """

    acc: torch.Tensor
    peak: torch.Tensor
    mass: torch.Tensor

    @classmethod
    def empty(cls, rows: int, q_heads: int, head_dim: int) -> AttentionState:
        """The state of rows that have seen nothing."""
        acc = torch.zeros(rows, q_heads, head_dim)
        return cls(acc, torch.full((rows, q_heads), -torch.inf), torch.zeros(rows, q_heads))

    def reset(self, rows: int) -> None:
        """Make the first `rows` rows empty again."""
        self.acc[:rows] = 0.0
        self.peak[:rows] = -torch.inf
        self.mass[:rows] = 0.0

    def finish(
        self, out_dtype: torch.dtype, out: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(out [M, Hq, D] in out_dtype, lse float32 [M, Hq], natural log). An empty row gives 0 and -inf."""
        rows, heads, head_dim = checks.dimensions("acc", self.acc, 3)
        narrow = checks.narrow(out_dtype, "out_dtype")
        acc, peak, mass = self.addresses()
        out, target = checks.result(out, (rows, heads, head_dim), out_dtype)
        lse = torch.empty(rows, heads)
        native().finish_state(acc, peak, mass, rows * heads, head_dim, target, narrow, lse.data_ptr())
        return out, lse

    def addresses(self) -> tuple[int, int, int]:
        """Addresses of acc, peak and mass, checked."""
        rows, heads, head_dim = checks.dimensions("acc", self.acc, 3)
        return (
            checks.tensor("acc", self.acc, (rows, heads, head_dim), torch.float32),
            checks.tensor("peak", self.peak, (rows, heads), torch.float32),
            checks.tensor("mass", self.mass, (rows, heads), torch.float32),
        )


def merge(
    a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge finished states (out [..., D], lse [...], natural log; empty: lse = -inf) over disjoint tokens.

    Exact in exact arithmetic only: states are folded in position order where bits matter.
    """
    lse = torch.logaddexp(a[1], b[1])
    base = torch.where(lse.isneginf(), torch.zeros_like(lse), lse)
    weight_a, weight_b = torch.exp(a[1] - base), torch.exp(b[1] - base)
    return a[0] * weight_a[..., None] + b[0] * weight_b[..., None], lse
