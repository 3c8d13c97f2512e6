"""Engines that keep their pages, and what they say without any that were kept."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

from fixtures_engine import Said, prompt, running, speak, tiny_model

from tokenvm.config import MemoryConfig
from tokenvm.engine.engine import Engine
from tokenvm.engine.launch import Settings, needs_of
from tokenvm.memory.kept_size import geometry_of_store, limit_for
from tokenvm.memory.layout import PageLayout
from tokenvm.models.weights.pack import LoadedModel

PROMPTS = [prompt(100, 1), (*prompt(64, 2), *prompt(30, 3)), (*prompt(64, 2), *prompt(50, 4))]
WHOLE_PAGES = 6 + 5 + 3  # of the three prompts, the four pages that two of them share counted once


@cache
def model(wide: bool = False) -> LoadedModel:
    return tiny_model(wide=wide)


def kept(
    folder: Path, disk_pages: int = 40, *, wide: bool = False, **more: object
) -> AbstractContextManager[Engine]:
    chosen = {name: more[name] for name in ("compression", "kv_cache_dtype") if name in more}
    _, geometry = needs_of(model(wide), Settings(MemoryConfig(block_tokens=16, **chosen), folder))
    layout = PageLayout(model(wide).spec.layers, geometry.part_bytes)
    numbers = {"device_pages": 20, "keep_pages": True, **more}
    limit = limit_for(disk_pages, geometry_of_store(layout))
    return running(model(wide), folder, nvme_limit=limit, **numbers)


@cache
def cold(wide: bool = False, kv_cache_dtype: str = "auto") -> list[Said]:
    with (
        tempfile.TemporaryDirectory() as folder,
        running(model(wide), Path(folder), kv_cache_dtype=kv_cache_dtype) as engine,
    ):
        return speak(engine, PROMPTS)


def disk_hits(engine: Engine) -> int:
    return int(engine.stats()["prefix_cache"]["hit_tokens"]["disk"])
