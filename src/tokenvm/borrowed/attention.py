"""The attention function that Transformers' modules call: it hands q, k and v to a ForwardContext."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

from tokenvm.errors import UnsupportedModel

NAME: Final = "tokenvm_engine"
"""What Transformers knows the function by. No mask is registered by it, so that none is made."""

_HARMLESS: Final = frozenset(
    {
        "position_ids",
        "use_cache",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "logits_to_keep",
        "cache_position",
        "position_embeddings",
    }
)
"""Arguments that modules pass along and that change nothing here."""


@dataclass(frozen=True, slots=True)
class Call:
    """What one layer asks for: q [M, Hq, D], k and v [M, Hkv, D], roped already; `window` 0 shows every token."""

    layer: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scale: float
    window: int


class Attends(Protocol):
    """Who does the attention of one forward pass."""

    def attend(self, call: Call) -> torch.Tensor:
        """Return what every row sees: [M, Hq, D] in the dtype of q."""


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    tokenvm_pass: Attends | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as Transformers' `AttentionInterface` says: q, k, v [1, H, M, D] → [1, M, Hq, D].

    Raises UnsupportedModel, naming it, for what changes the mathematics and is not done here.
    """
    refuse(module, query, key, value, attention_mask, dropout, kwargs)
    if tokenvm_pass is None:
        raise UnsupportedModel(
            f"{type(module).__name__} does not pass keyword arguments on to its attention: pass another model"
        )
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    out = tokenvm_pass.attend(Call(module.layer_idx, q, k, v, scale, sliding_window or 0))
    return out[None], None


def refuse(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float,
    kwargs: dict[str, Any],
) -> None:
    """Raise UnsupportedModel unless this is causal attention of equal heads, without anything of its own."""
    odd = sorted(name for name, value in kwargs.items() if value is not None and name not in _HARMLESS)
    if dropout:
        odd.append("dropout")
    if attention_mask is not None:
        odd.append("a mask of its own")
    if kwargs.get("is_causal") is False or not getattr(module, "is_causal", True):
        odd.append("attention to later tokens")
    if not query.shape[-1] == key.shape[-1] == value.shape[-1]:
        odd.append(f"keys of {key.shape[-1]} and values of {value.shape[-1]} dimensions")
    if odd:
        raise UnsupportedModel(
            f"{type(module).__name__} needs {', '.join(odd)} in its attention, which is not supported: "
            "pass another model"
        )
