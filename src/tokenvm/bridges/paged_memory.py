"""Memory for paged tensors, made from settings."""

from __future__ import annotations

from tokenvm.bridges.settings import settings_of
from tokenvm.config import MemoryConfig
from tokenvm.engine.launch import build_memory
from tokenvm.errors import ConfigError
from tokenvm.memory.codec import make_codec
from tokenvm.memory.layout import ALIGNMENT_BYTES, PageLayout
from tokenvm.tensor_memory import TensorMemory

DEFAULT_PAGE_BYTES = 1 << 20


class PagedMemory(TensorMemory):
    """Memory within the limits of a `MemoryConfig`: `vram_limit` bounds what lies on the device, the ring included.

    `page_size` is that of its pages, 1 MiB if not given. Use it in a `with` block, or close it.

    Raises:
        ConfigError: a setting does not fit. LimitTooSmall: a limit is below two pages. StorageError: a tier cannot be
            opened.
    """

    def __init__(self, config: MemoryConfig | None = None) -> None:
        settings = settings_of(config)
        memory = settings.memory
        if memory.compression != "none":
            raise ConfigError(f'compression="{memory.compression}" is for KV: leave it out for paged tensors')
        asked = DEFAULT_PAGE_BYTES if memory.page_size == "auto" else memory.page_size
        page_bytes = -(-asked // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        vm = build_memory(PageLayout(1, page_bytes), settings, make_codec("none"), wanted_pages=1 << 40)
        super().__init__(vm)
