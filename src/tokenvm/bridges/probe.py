"""How a model attends: found out by running it once, on one token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenvm.bridges.attention import NAME, remember
from tokenvm.bridges.library import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
)
from tokenvm.bridges.masks import MaskRequest
from tokenvm.errors import ModelError
from tokenvm.kernels.paging import PartGeometry


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model caches: heads, the columns of keys and of values by layer, dtype, and why its attention is its own.

    `own` is "" where our kernel computes all of it. `cross`: there is a second cache, of what an encoder heard.
    """

    kv_heads: int
    sizes: tuple[tuple[int, int], ...]
    dtype: torch.dtype
    own: str
    cross: bool

    def geometry(self, block_tokens: int) -> PartGeometry:
        """Return the geometry of parts that hold the widest of it; narrower keys or values are padded."""
        widest = max(size for pair in self.sizes for size in pair)
        return PartGeometry(self.kv_heads, widest + widest % 2, block_tokens, self.dtype)


@dataclass
class _Notes:
    keys: torch.Size | None = None
    values: torch.Size | None = None
    dtype: torch.dtype | None = None
    attended: bool = False
    refused: str = ""


@dataclass
class _ProbeLayer(CacheLayerMixin):  # type: ignore[misc]
    """Notes what it is given, and what attention asks of it. Keeps nothing."""

    notes: _Notes = field(default_factory=_Notes)
    is_initialized: bool = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        pass

    def update(self, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.notes.keys, self.notes.values, self.notes.dtype = k.shape, v.shape, k.dtype
        if v.dtype is not k.dtype:
            self.notes.refused = "values of another dtype than keys"
        return remember(k, self), v

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: MaskRequest,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        self.notes.attended = True
        past = torch.zeros(len(q), 0, dtype=torch.bool).numpy()
        self.notes.refused = self.notes.refused or mask.refusal(past, window)
        if k.shape != self.notes.keys:
            self.notes.refused = "keys that change after they were cached"
        return q.transpose(1, 2).contiguous()

    def refuse(self, reason: str) -> None:
        self.notes.refused = self.notes.refused or reason

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


def probe(model: Any) -> Shape:
    """Run a model once and say what it caches and how it attends. It is left as it was.

    Raises ModelError, with the model's name, for a model whose state cannot be paged.
    """
    name = model.config.model_type
    _refuse_kinds(model, name)
    cross = bool(model.config.is_encoder_decoder)
    layers = _layers(model, name)
    own = "its decoder attends an encoder" if cross else _cannot_switch(model)
    with _evaluating(model), torch.no_grad():
        if own:
            halves = _run(model, layers, cross)
        else:
            with switched(model, NAME):
                halves = _run(model, layers, cross)
    return _shape(name, halves, own, cross)


@contextmanager
def switched(model: Any, implementation: str) -> Iterator[None]:
    """Let a model attend by another implementation for a while."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _refuse_kinds(model: Any, name: str) -> None:
    if not hasattr(model, "generate"):
        raise ModelError(
            f"{type(model).__name__} does not generate: give a model made by AutoModelForCausalLM"
        )
    if getattr(model, "_is_stateful", False) or not model._supports_default_dynamic_cache():
        raise ModelError(
            f"{name} keeps a state that is not made of keys and values by token: it cannot be paged"
        )
    device = {parameter.device.type for parameter in model.parameters()}
    if device - {"cpu"}:
        raise ModelError(
            f"{name} lies on {', '.join(sorted(device))}, and this version pages on the CPU: model.cpu()"
        )


def _layers(model: Any, name: str) -> int:
    """Count the layers of the cache that Transformers would make; ModelError if one of them is of another kind."""
    known = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    for layer in known:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            kind = type(layer).__name__
            raise ModelError(
                f"{name} has layers of the kind {kind}, which cannot be paged yet: use it unpatched"
            )
    return len(known)


def _cannot_switch(model: Any) -> str:
    ok = model._can_set_attn_implementation() and getattr(model, "_supports_attention_backend", False)
    return "" if ok else "its attention has no interface"


def _run(model: Any, layers: int, cross: bool) -> list[list[_Notes]]:
    caches = [Cache([_ProbeLayer() for _ in range(layers)]) for _ in range(1 + cross)]
    token, mask = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64)
    if cross:
        pair = EncoderDecoderCache(*caches)
        model(
            input_ids=token,
            attention_mask=mask,
            decoder_input_ids=token,
            past_key_values=pair,
            use_cache=True,
        )
    else:
        model(input_ids=token, attention_mask=mask, past_key_values=caches[0], use_cache=True)
    return [[layer.notes for layer in cache.layers] for cache in caches]


def _shape(name: str, halves: list[list[_Notes]], own: str, cross: bool) -> Shape:
    notes = halves[0]
    heads = {(n.keys[1], n.values[1], n.dtype) for half in halves for n in half if n.keys and n.values}
    if any(n.keys is None or n.values is None for half in halves for n in half) or len(heads) != 1:
        raise ModelError(f"{name} has layers that cache other heads than the first: it cannot be paged yet")
    k_heads, v_heads, dtype = heads.pop()
    if k_heads != v_heads or dtype not in (torch.float32, torch.bfloat16):
        raise ModelError(
            f"{name} caches {k_heads} heads of keys and {v_heads} of values in {dtype}: as many of each are paged, in "
            "float32 or bfloat16; load it with dtype=torch.bfloat16"
        )
    sizes = tuple((n.keys[-1], n.values[-1]) for n in notes if n.keys and n.values)
    if len({size for pair in sizes for size in pair}) > 1:
        own = own or "keys and values of several sizes"
    own = own or next((n.refused for n in notes if n.refused), "")
    if not own and not all(n.attended for n in notes):
        own = "its attention has no interface"
    return Shape(k_heads, sizes, dtype, own, cross)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
