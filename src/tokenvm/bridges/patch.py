"""Paging for a model of Transformers that its user already has: one line, and `generate` as before."""

from __future__ import annotations

from typing import Any, Literal

from tokenvm.bridges.attention import register
from tokenvm.bridges.kv_store import KvStore
from tokenvm.bridges.library import PreTrainedModel
from tokenvm.bridges.pager import Pager
from tokenvm.bridges.probe import Shape, probe
from tokenvm.bridges.settings import settings_of
from tokenvm.config import MemoryConfig
from tokenvm.engine.compression import codec_of
from tokenvm.engine.launch import Settings, build_memory
from tokenvm.engine.prefetch import layers_ahead
from tokenvm.errors import ConfigError, LimitTooSmall
from tokenvm.memory.layout import PageLayout

PATCH_BLOCK_TOKENS = 128
_SEQUENCES = 4  # for how many of the model's longest there is room where a limit is left open
_DEFAULT_LENGTH = 4096  # of a model that does not say how long its sequences may be

Attention = Literal["auto", "gather"]


def patch_model_attention(
    model: Any, block_tokens: int = PATCH_BLOCK_TOKENS, *, attention: Attention = "auto"
) -> Any:
    """Page the KV of a model of Transformers, in pages of `block_tokens` tokens; limits as the environment says.

    `model.generate` works as before, and `model.tokenvm.stats()` says what moved. Returns the model. See
    `enable_paging`.
    """
    return enable_paging(model, MemoryConfig(block_tokens=block_tokens), attention=attention)


def enable_paging(model: Any, config: MemoryConfig | None = None, *, attention: Attention = "auto") -> Any:
    """Page the KV of a model of Transformers within the limits of `config`; return the model.

    The model runs once, on one token, to see how it attends. Where our kernel computes that, it attends pages where
    they lie; else, and with attention="gather", the model's own code attends copies. `disable_paging` undoes it.

    Raises:
        ModelError: the model's state cannot be paged; says which and why. ConfigError: a setting does not fit.
            LimitTooSmall: a limit is below two pages. StorageError: a tier cannot be opened.
    """
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"{type(model).__name__} is no model of Transformers: give one made by AutoModelForCausalLM.from_pretrained"
        )
    if attention not in ("auto", "gather"):
        raise ConfigError(f'attention={attention!r} is not available: use "auto" or "gather"')
    if getattr(model, "tokenvm", None) is not None:
        raise ConfigError("this model is paged already: call disable_paging(model) first")
    settings = _settings(config)
    register()
    shape = probe(model)
    reason = shape.own or ('it was asked for with attention="gather"' if attention == "gather" else "")
    stores = _stores(model, shape, settings)
    Pager(model, shape, stores, reason)
    return model


def disable_paging(model: Any) -> Any:
    """Let a model be as it was before `enable_paging`; return it. Its pages are gone. Idempotent."""
    pager = model.__dict__.get("tokenvm")
    if pager is not None:
        pager.close()
    return model


def _settings(config: MemoryConfig | None) -> Settings:
    """Combine `config` with environment, file and defaults; refuse what only our own engine does."""
    settings = settings_of(config)
    if settings.memory.kv_cache_dtype != "auto":
        raise ConfigError(
            f'kv_cache_dtype="{settings.memory.kv_cache_dtype}" works in LLM, not inside Transformers: leave it out'
        )
    return settings


def _block_tokens(shape: Shape, memory: MemoryConfig) -> int:
    if memory.block_tokens != "auto":
        return memory.block_tokens
    if memory.page_size == "auto":
        return PATCH_BLOCK_TOKENS
    for block_tokens in range(256, 0, -16):
        needed = PageLayout(len(shape.sizes), shape.geometry(block_tokens).part_bytes).page_bytes
        if needed <= memory.page_size:
            return block_tokens
    raise LimitTooSmall(
        f"page_size={memory.page_size} holds fewer than 16 tokens: use {needed} or more", needed
    )


def _stores(model: Any, shape: Shape, settings: Settings) -> list[KvStore]:
    """Make one store, or two that share the limits: of what a decoder said, and of what it heard."""
    count = 1 + shape.cross
    weights = sum(parameter.nbytes for parameter in model.parameters())
    memory = _shared(settings.memory, count, weights)
    geometry = shape.geometry(_block_tokens(shape, memory))
    shared = Settings(memory, settings.disk_path)
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    stores: list[KvStore] = []
    try:
        for layers in (len(shape.sizes), 1)[:count]:
            layout = PageLayout(layers, geometry.part_bytes)
            tokens = _SEQUENCES * (longest or _DEFAULT_LENGTH) * len(shape.sizes) // layers
            vm = build_memory(
                layout,
                shared,
                codec_of(shared.memory, geometry, layout),
                wanted_pages=-(-tokens // geometry.block_tokens) + 1,
                block_tokens=geometry.block_tokens,
                other_bytes=weights if memory.vram_limit != "auto" else 0,
            )
            stores.append(KvStore(vm, geometry, prefetch_ahead=layers_ahead(memory)))
    except BaseException as error:
        for store in stores:
            store.close()
        if isinstance(error, LimitTooSmall) and count > 1:
            least = count * error.minimum_bytes
            raise LimitTooSmall(f"{error}; times {count}, as decoder and encoder share it", least) from error
        raise
    return stores


def _shared(memory: MemoryConfig, count: int, weights: int) -> MemoryConfig:
    """Divide the limits among `count` stores; of `vram_limit` what `weights` bytes leave, since each counts them."""
    parts = {
        name: value // count
        for name in ("kv_limit", "host_memory", "nvme_limit", "kv_cache_num_tokens")
        if isinstance(value := getattr(memory, name), int)
    }
    if isinstance(memory.vram_limit, int):
        parts["vram_limit"] = weights + (memory.vram_limit - weights) // count
    return memory.model_copy(update=parts)
