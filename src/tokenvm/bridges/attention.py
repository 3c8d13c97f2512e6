"""The attention function that models call: over pages where the keys were cached in ours, else over what is given."""

from __future__ import annotations

from typing import Any, Final, Protocol

import torch

from tokenvm.bridges.library import AttentionInterface, AttentionMaskInterface, sdpa_attention_forward
from tokenvm.bridges.masks import MaskRequest, describe_mask, requested
from tokenvm.errors import RequestError

NAME: Final = "tokenvm"
"""What the implementation is called in `model.set_attn_implementation`."""

_LAYER: Final = "_tokenvm_layer"
_HARMLESS: Final = frozenset(
    {
        "position_ids",
        "use_cache",
        "sliding_window",
        "output_attentions",
        "output_router_logits",
        "output_hidden_states",
    }
)
"""Arguments that change nothing here, or are taken into account."""


class AttendingLayer(Protocol):
    """A layer of a cache that attends by itself."""

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: MaskRequest,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        """Append k and v [B, Hkv, T, D], attend q [B, Hq, T, D]; return [B, T, Hq, D]."""
        ...

    def refuse(self, reason: str) -> None:
        """Hear what attention asks for that the kernel does not compute. Raises, or notes it."""
        ...


def register() -> None:
    """Make the implementation known to Transformers; idempotent."""
    AttentionInterface.register(NAME, paged_attention)
    AttentionMaskInterface.register(NAME, describe_mask)


def remember(k: torch.Tensor, layer: AttendingLayer) -> torch.Tensor:
    """Let keys carry the layer that they are to be cached in, so that attention finds it."""
    setattr(k, _LAYER, layer)
    return k


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **asked: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as `AttentionInterface` has it: query [B, Hq, T, D], key and value [B, Hkv, L, D] to [B, T, Hq, D].

    Raises RequestError where pages are attended and something is asked for that the kernel does not compute.
    """
    layer: AttendingLayer | None = getattr(key, _LAYER, None)
    mask = requested(attention_mask)
    if layer is None:
        made = mask.materialise() if mask else attention_mask
        answer: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, made, dropout=dropout, scaling=scaling, **asked
        )
        return answer
    reason = _uncovered(query, key, value, asked, dropout) or ("" if mask else "a mask of its own")
    if reason or mask is None:
        layer.refuse(reason)
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window = asked.get("sliding_window") or 0
    return layer.attend(query, key, value, mask, scale, int(window)), None


def _uncovered(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, asked: dict[str, Any], dropout: float
) -> str:
    """Say what the kernel does not compute, in a few words; "" if it computes all of it."""
    others = sorted(name for name, given in asked.items() if given is not None and name not in _HARMLESS)
    if "is_causal" in others and asked["is_causal"] is True:
        others.remove("is_causal")
    if others:
        return others[0]
    if dropout:
        return "dropout"
    if key.shape != value.shape:
        return "values of another size than keys"
    if query.shape[-1] != key.shape[-1] or query.shape[1] % key.shape[1] or query.shape[-1] % 2:
        return "heads of an uneven size"
    return ""


def refuse_gradient(*tensors: torch.Tensor) -> None:
    """Raise RequestError if a gradient would be wanted: pages have none."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise RequestError(
            "attention over pages has no gradient: use torch.no_grad(), or use_cache=False to train"
        )
