"""What a store that keeps its pages takes on disk, and how many pages fit a limit."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from tokenvm.errors import LimitTooSmall
from tokenvm.memory.codec import Codec, Identity
from tokenvm.memory.disk import MOST_SLABS, pages_of_slab
from tokenvm.memory.layout import ALIGNMENT_BYTES, PageLayout
from tokenvm.memory.page_format import Geometry, index_file_bytes
from tokenvm.memory.page_index import INDEX_NAMES

BESIDE_BYTES = 2 * ALIGNMENT_BYTES
"""The lock, and the file that tries direct I/O when a store is opened."""

SLAB_NAME = re.compile(r"slab-(\d{5,8})")


def slab_name(slab: int) -> str:
    """Return the name of a slab's file."""
    return f"slab-{slab:05}"


def geometry_of_store(layout: PageLayout, codec: Codec | None = None) -> Geometry:
    """Return what the head of a store of these pages says of them."""
    named = codec or Identity()
    return Geometry(layout.layers, layout.part_stride, named.stored_bytes(layout.part_stride), named.name)


def limit_for(pages: int, geometry: Geometry) -> int:
    """Return the bytes that so many pages take with their index: the least limit that holds them in whole slabs."""
    return pages * geometry.page_bytes + 2 * index_file_bytes(geometry, pages) + BESIDE_BYTES


def kept_capacity(limit_bytes: int, geometry: Geometry, slab_pages: int | None = None) -> tuple[int, int]:
    """Return how many pages fit a limit beside their index, and how many of them a slab has.

    `slab_pages` are those of a store that is there; one that would have far too many slabs is made anew. Raises
    LimitTooSmall where no page fits.
    """
    pages = limit_bytes // (geometry.page_bytes + 4 * geometry.record_bytes)
    while pages > 0 and limit_for(pages, geometry) > limit_bytes:
        pages -= 1
    if pages <= 0:
        least = limit_for(1, geometry)
        raise LimitTooSmall(
            f"nvme_limit of {limit_bytes} bytes holds no page beside its index: type nvme_limit={least} or more, or 0",
            least,
        )
    if slab_pages is not None and slab_pages <= pages <= slab_pages * 4 * MOST_SLABS:
        return pages // slab_pages * slab_pages, slab_pages
    layout = PageLayout(geometry.layers, geometry.part_stride)
    slabs = -(-pages // pages_of_slab(layout, pages))
    return pages // slabs * slabs, pages // slabs


def taken_bytes(path: Path) -> int:
    """Return what the files of a store take on disk now."""
    total = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(path):
            if SLAB_NAME.fullmatch(entry.name) or entry.name in INDEX_NAMES:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
