"""Strides of parts and pages."""

import pytest

from tokenvm.memory.layout import PageLayout


@pytest.mark.parametrize(("part_bytes", "stride"), [(1, 4096), (4096, 4096), (4097, 8192), (12288, 12288)])
def test_parts_begin_on_4_kib(part_bytes: int, stride: int) -> None:
    layout = PageLayout(layers=30, part_bytes=part_bytes)
    assert layout.part_stride == stride
    assert layout.page_bytes == 30 * stride


@pytest.mark.parametrize(("layers", "part_bytes"), [(0, 1), (1, 0), (-1, 4096)])
def test_nothing_is_no_page(layers: int, part_bytes: int) -> None:
    with pytest.raises(AssertionError):
        PageLayout(layers, part_bytes)
