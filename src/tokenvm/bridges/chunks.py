"""Forward passes that are too long for the device, in chunks that are not. The answer is that of one pass."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from tokenvm.bridges.paged_cache import PagedCache

Forward = Callable[..., Any]

_BY_TOKEN: Final[Mapping[str, int]] = {
    "input_ids": 1,
    "inputs_embeds": 1,
    "position_ids": -1,
    "token_type_ids": -1,
}
"""Arguments that have a dimension of the tokens of the pass, and which."""

_WHOLE: Final = ("labels", "output_hidden_states", "output_attentions")
"""What is asked of all tokens at once: such a pass is not cut."""


def chunked(forward: Forward, most: Callable[[int], int]) -> Forward:
    """Wrap a model's `forward`. A pass over a `PagedCache` of more than `most(rows)` tokens is computed in several."""
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        asked = _named(signature, args, kwargs)
        cache, new = asked.get("past_key_values"), _given(asked)
        if not isinstance(cache, PagedCache) or new is None:
            return forward(*args, **kwargs)
        limit = most(new.shape[0])
        if new.shape[1] <= limit or not _can_be_cut(asked):
            return forward(*args, **kwargs)
        return _in_chunks(forward, asked, cache.get_seq_length(), new.shape[1], limit, signature)

    return call


def _named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments by their name."""
    bound = dict(signature.bind(*args, **kwargs).arguments)
    rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
    others = bound.pop(rest, {})
    return {**bound, **others}


def _given(asked: Mapping[str, Any]) -> torch.Tensor | None:
    found: torch.Tensor | None = asked.get("input_ids")
    return asked.get("inputs_embeds") if found is None else found


def _can_be_cut(asked: Mapping[str, Any]) -> bool:
    mask, keep = asked.get("attention_mask"), asked.get("logits_to_keep", 0)
    known = (
        (mask is None or mask.dim() == 2) and isinstance(keep, int) and asked.get("return_dict") is not False
    )
    return known and not any(asked.get(name) is not None and asked[name] is not False for name in _WHOLE)


def _in_chunks(
    forward: Forward, asked: dict[str, Any], past: int, count: int, most: int, signature: inspect.Signature
) -> Any:
    """Compute all columns, as many at once as fit; the last answer, with the logits of all that were asked for."""
    keep = asked.pop("logits_to_keep", 0)
    first = count - keep if keep else 0  # column of the first logits that are wanted
    logits, out = [], None
    for begin in range(0, count, most):
        end = min(begin + most, count)
        part = _columns(asked, begin, end, past)
        wanted = end - max(begin, min(first, end))
        if "logits_to_keep" in signature.parameters:
            part["logits_to_keep"] = max(wanted, 1)
        out = forward(**part)
        if wanted:
            logits.append(out.logits[:, -wanted:])
    assert out is not None, "a pass without tokens"
    out.logits = torch.cat(logits, dim=1)
    return out


def _columns(asked: Mapping[str, Any], begin: int, end: int, past: int) -> dict[str, Any]:
    """Return the arguments of the pass over [begin, end), `past` columns after the cache's first."""
    part = dict(asked)
    for name, dimension in _BY_TOKEN.items():
        if part.get(name) is not None:
            part[name] = part[name].narrow(dimension, begin, end - begin)
    if part.get("attention_mask") is not None:
        part["attention_mask"] = part["attention_mask"][:, : past + end]
    return part
