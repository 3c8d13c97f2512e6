"""PagedLLM's names for TokenVM."""

from __future__ import annotations

from typing import Any

from tokenvm import (
    MemoryConfig,
    MemoryHint,
    PagedLinear,
    PagedModel,
    PagedTensor,
    disable_paging,
    enable_paging,
    paged_activations,
    verify_installation,
)
from tokenvm import PagedMemory as MemoryManager
from tokenvm.bridges.paged_model import Generated, PagedLlama

__all__ = [
    "Generated",
    "MemoryConfig",
    "MemoryHint",
    "MemoryManager",
    "PagedLLMConfig",
    "PagedLinear",
    "PagedLlama",
    "PagedModel",
    "PagedTensor",
    "disable_paging",
    "enable_paging",
    "paged_activations",
    "verify_installation",
]


def PagedLLMConfig(*, vram_size: int | str = "auto", **settings: Any) -> MemoryConfig:  # noqa: N802 - its name there
    """Make a `MemoryConfig` by PagedLLM's names: `vram_size` is `vram_limit`; all others are the same."""
    return MemoryConfig(vram_limit=vram_size, **settings)
