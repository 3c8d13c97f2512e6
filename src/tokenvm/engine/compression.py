"""Which codec an engine's disk tier has, and what its threads need for it."""

from __future__ import annotations

from tokenvm.config import MemoryConfig
from tokenvm.errors import ConfigError
from tokenvm.kernels.paging import PartGeometry
from tokenvm.memory.codec import Codec, make_codec
from tokenvm.memory.layout import PageLayout

READ_BYTES = 1 << 20
"""The longest read that is made of neighbours."""


def codec_of(memory: MemoryConfig, geometry: PartGeometry, layout: PageLayout) -> Codec:
    """Make the codec that the settings name.

    Raises ConfigError where it cannot help: parts that are not bfloat16, or too small for a smaller size class; and
    where the package it needs is not installed.
    """
    codec = make_codec(memory.compression)
    if codec.name == "none":
        return codec
    named = f'compression="{codec.name}"'
    if geometry.lossy or not geometry.narrow:
        kind = f"{geometry.kv_format} KV" if geometry.lossy else "float32 KV"
        raise ConfigError(f'{named} saves nothing on {kind}: use compression="none", or KV in bfloat16')
    if codec.stored_bytes(layout.part_stride) == layout.part_stride:
        raise ConfigError(
            f"{named} saves nothing on parts of {layout.part_bytes} bytes: use more block_tokens than "
            f'{geometry.block_tokens}, or compression="none"'
        )
    return codec


def bounce_bytes(codec: Codec, layout: PageLayout, threads: int) -> int:
    """Return the most memory in which `threads` I/O threads keep encoded parts: one run, or one part, each."""
    stored = codec.stored_bytes(layout.part_stride)
    return threads * max(READ_BYTES, stored) if stored < layout.part_stride else 0
