"""Forward passes that are too long for the device, in chunks that are not. The answer is that of one pass."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from tokenvm.bridges.kv_store import KvStore
from tokenvm.bridges.paged_cache import PagedCache
from tokenvm.bridges.ropes import switches_at
from tokenvm.errors import LimitTooSmall

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


def chunked(forward: Forward, store: KvStore, config: Any) -> Forward:
    """Wrap a model's `forward`. A pass over a `PagedCache` of more tokens than `store` takes is computed in several.

    It raises LimitTooSmall where the model's rope, as `config` declares it, would turn keys otherwise in several.
    """
    signature, switches = inspect.signature(forward), switches_at(config)

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        asked = _named(signature, args, kwargs)
        cache, new = asked.get("past_key_values"), _given(asked)
        if not isinstance(cache, PagedCache) or new is None:
            return forward(*args, **kwargs)
        limit = store.chunk_tokens(new.shape[0])
        if new.shape[1] <= limit or not _can_be_cut(asked):
            return forward(*args, **kwargs)
        first, last = _reach(asked, cache.get_seq_length(), new.shape[1], limit)
        if any(at < last and (grows or first <= at) for at, grows in switches):
            least = store.bytes_for(*new.shape[:2])
            raise LimitTooSmall(
                f"a pass of {new.shape[0]} x {new.shape[1]} tokens does not fit the device, and in several this "
                f'model\'s rope would give other keys: type kv_limit="{-(-least // 10**6)}MB" or more',
                least,
            )
        return _in_chunks(forward, asked, cache.get_seq_length(), new.shape[1], limit, signature)

    return call


def _named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments by their name."""
    bound = dict(signature.bind(*args, **kwargs).arguments)
    rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
    others = bound.pop(rest, {})
    return {**bound, **others}


def _reach(asked: Mapping[str, Any], past: int, count: int, most: int) -> tuple[int, int]:
    """Return how many tokens the first chunk reaches, and the whole pass: the largest position and one."""
    positions = asked.get("position_ids")
    if positions is None:
        return past + most, past + count
    return int(positions[..., :most].max()) + 1, int(positions.max()) + 1


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
