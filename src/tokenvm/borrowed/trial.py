"""A few tokens through a module tree, before it is trusted: what its layers ask for, and whether that is answered.

The logits with our attention function, done here in plain torch, must be those with the module's own attention. So a
model that keeps a state, shares keys between layers, or attends anywhere else, is found out and refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from tokenvm.borrowed.attention import Call
from tokenvm.borrowed.decoder import run
from tokenvm.errors import UnsupportedModel

TOKENS: Final = 24
_FP32_TOLERANCE: Final = 1e-3
_BF16_TOLERANCE: Final = 0.1


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer asked for."""

    q_heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int


class Trial:
    """Attends one sequence in plain torch, and notes the shape of every call by its layer."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}

    def attend(self, call: Call) -> torch.Tensor:
        """See `Attends.attend`; the rows are one sequence from its beginning."""
        if call.layer in self.shapes:
            raise UnsupportedModel(
                f"layer {call.layer} attends twice, which is not supported: pass another model"
            )
        rows, q_heads, head_dim = call.q.shape
        shape = LayerShape(q_heads, call.k.shape[1], head_dim, call.scale, call.window)
        self.shapes[call.layer] = shape
        group = q_heads // shape.kv_heads
        k, v = (x.float().repeat_interleave(group, 1) for x in (call.k, call.v))
        ago = torch.arange(rows)[:, None] - torch.arange(rows)
        hidden = (ago < 0) | (ago >= (call.window or rows))
        scores = torch.einsum("mhd,thd->hmt", call.q.float(), k) * call.scale
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return torch.einsum("hmt,thd->mhd", weights, v).to(call.q.dtype)


def tried(
    module: Any, name: str, own: str, ours: str, prepare: Callable[[], object] = lambda: None
) -> list[LayerShape]:
    """Run a trial and return what each layer asks for, in order.

    `own` and `ours` are the names of the module's attention function and of ours; `prepare` may change the module
    before ours has its turn. Raises UnsupportedModel, with the architecture's `name`, where the answers differ or
    layers do not attend by the function.
    """
    ids = torch.arange(TOKENS) % (module.config.vocab_size - 3) + 3
    positions, trial = torch.arange(TOKENS), Trial()
    with torch.inference_mode():
        module.set_attn_implementation(own)
        expected = module(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0]
        prepare()
        module.set_attn_implementation(ours)
        found = run(module, ids, positions, positions, trial)
    layers = module.config.num_hidden_layers
    if sorted(trial.shapes) != list(range(layers)):
        raise UnsupportedModel(
            f"{name}: {len(trial.shapes)} of {layers} layers attend by the attention interface of Transformers; all "
            "have to: pass another model"
        )
    apart = _apart(found.float(), expected.float(), exact=expected.dtype is torch.float32)
    if not apart <= (_FP32_TOLERANCE if expected.dtype is torch.float32 else _BF16_TOLERANCE):
        raise UnsupportedModel(
            f"{name}: with the attention of this project its logits differ by {apart:.1%} of the largest, so it "
            "attends in a way of its own: pass another model"
        )
    return [trial.shapes[layer] for layer in range(layers)]


def _apart(found: torch.Tensor, expected: torch.Tensor, *, exact: bool) -> float:
    """How far rows of logits are apart, as a share of the largest: the worst row if `exact`, else the median.

    In bfloat16 rounding alone may send a row to another expert, which changes that row much; attention that is wrong
    changes nearly all.
    """
    rows = (found - expected).abs().amax(dim=-1)
    return float((rows.max() if exact else rows.median()) / expected.abs().max())
