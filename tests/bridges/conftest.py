"""Patched models on tiers of a few pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenvm.bridges.attention import register
from tokenvm.bridges.patch import disable_paging, enable_paging
from tokenvm.bridges.probe import probe
from tokenvm.config import MemoryConfig
from tokenvm.engine.budget import MIN_RING_PARTS
from tokenvm.memory.layout import PageLayout

BLOCK = 16

Page = Callable[..., Any]


@pytest.fixture
def page(disk_path: Path) -> Iterator[Page]:
    """Patch a model so that `pages` pages of its KV lie on the device, a quarter less if it has an encoder."""
    patched = []

    def patch(model: Any, pages: int, *, attention: str = "auto", **settings: Any) -> Any:
        register()
        shape = probe(model)
        part = PageLayout(1, shape.geometry(BLOCK).part_bytes).part_stride
        stores = 1 + shape.cross
        limit = pages * part * len(shape.sizes) + MIN_RING_PARTS * part
        memory = {
            "block_tokens": BLOCK,
            "kv_limit": limit * stores,
            "nvme_path": disk_path,
            "nvme_limit": "64MB",
        }
        enable_paging(model, MemoryConfig(**{**memory, **settings}), attention=attention)
        patched.append(model)
        return model

    yield patch
    for model in patched:
        disable_paging(model)
