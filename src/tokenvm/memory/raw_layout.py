"""How the raw parts of a page lie in slots made for quantised ones."""

from __future__ import annotations

from dataclasses import dataclass

from tokenvm.memory.layout import PageLayout


@dataclass(frozen=True, slots=True)
class RawLayout:
    """A raw part of `raw_part_bytes` takes as many consecutive parts of a slot as it needs; none crosses slots.

    `layout` is that of the slots. What a slot has left behind its last raw part stays empty.
    """

    layout: PageLayout
    raw_part_bytes: int

    @property
    def places(self) -> int:
        """Parts of a slot that one raw part takes."""
        return -(-self.raw_part_bytes // self.layout.part_stride)

    @property
    def layers_a_slot(self) -> int:
        """Raw parts that fit one slot; 0 where a page has too few layers for even one."""
        return self.layout.layers // self.places

    @property
    def slots(self) -> int:
        """Slots that the raw parts of one page take."""
        return -(-self.layout.layers // self.layers_a_slot)

    def slot_of(self, layer: int) -> int:
        """Which of the page's slots holds this layer's raw part."""
        return layer // self.layers_a_slot

    def offset_of(self, layer: int) -> int:
        """Bytes from the beginning of that slot to the raw part."""
        return layer % self.layers_a_slot * self.places * self.layout.part_stride
