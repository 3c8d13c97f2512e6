"""The geometry of an engine's pages: what the model's heads and the memory settings make of it."""

from __future__ import annotations

from tokenvm.config import MemoryConfig
from tokenvm.errors import ConfigError, LimitTooSmall
from tokenvm.kernels.paging import KV_FORMATS, KvFormat, PartGeometry
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.raw_layout import RawLayout
from tokenvm.models.spec import MAX_BLOCK_TOKENS, MIN_BLOCK_TOKENS
from tokenvm.models.weights.pack import LoadedModel


def geometry_of(model: LoadedModel, memory: MemoryConfig) -> PartGeometry:
    """Return the geometry of a model's parts under these settings.

    Raises:
        LimitTooSmall: page_size holds fewer than 16 tokens. ConfigError: the model has too few layers for the format.
    """
    if memory.block_tokens != "auto":
        geometry = _parts_of(model, memory, memory.block_tokens)
    elif memory.page_size != "auto":
        geometry = _largest_within(model, memory, memory.page_size)
    else:
        geometry = _parts_of(model, memory, model.spec.default_block_tokens())
    raw = RawLayout(PageLayout(model.spec.layers, geometry.part_bytes), geometry.raw.part_bytes)
    if geometry.lossy and not raw.layers_a_slot:
        raise ConfigError(
            f"kv_cache_dtype={geometry.kv_format} needs a model of at least {raw.places} layers, and this one has "
            f'{model.spec.layers}: use kv_cache_dtype="auto"'
        )
    return geometry


def raw_slots(layout: PageLayout, geometry: PartGeometry) -> int:
    """Return how many device slots the raw parts of an open page take beside its own slot."""
    return RawLayout(layout, geometry.raw.part_bytes).slots if geometry.lossy else 0


def _parts_of(model: LoadedModel, memory: MemoryConfig, block_tokens: int) -> PartGeometry:
    heads = model.spec.attention
    named: KvFormat = next((name for name in KV_FORMATS if name == memory.kv_cache_dtype), "raw")
    return PartGeometry(heads.kv_heads, heads.head_dim, block_tokens, model.weights.dtype, named)


def _largest_within(model: LoadedModel, memory: MemoryConfig, page_size: int) -> PartGeometry:
    for block_tokens in range(MAX_BLOCK_TOKENS, 0, -MIN_BLOCK_TOKENS):
        geometry = _parts_of(model, memory, block_tokens)
        needed = PageLayout(model.spec.layers, geometry.part_bytes).page_bytes
        if needed <= page_size:
            return geometry
    raise LimitTooSmall(
        f"page_size={page_size} bytes holds fewer than {MIN_BLOCK_TOKENS} tokens of this model: "
        f"use page_size={needed} or more, or leave it out",
        needed,
    )
