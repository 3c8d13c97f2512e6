"""How a page is cut into parts, the same in every tier. Where a part lies is each store's own business."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT_BYTES = 4096
"""Every part begins on this boundary, in memory and on disk: what direct I/O asks for anywhere."""

HUGE_BYTES = 2 << 20
"""A huge page of memory, where there are any."""


@dataclass(frozen=True, slots=True)
class PageLayout:
    """A page is one part of `part_bytes` per layer; a part takes `part_stride` bytes, the rest is padding."""

    layers: int
    part_bytes: int

    def __post_init__(self) -> None:
        assert self.layers > 0, f"PageLayout: layers={self.layers}"
        assert self.part_bytes > 0, f"PageLayout: part_bytes={self.part_bytes}"

    @property
    def part_stride(self) -> int:
        """Bytes from one part to the next: `part_bytes` rounded up to 4 KiB."""
        return -(-self.part_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    @property
    def page_bytes(self) -> int:
        """Bytes a page takes in any tier, padding included."""
        return self.layers * self.part_stride
