"""What heads and settings make of a page: tokens that fit a page size, and the slots of an open page."""

from itertools import pairwise

import pytest
import torch
from fixtures_engine import tiny_model

from tokenvm.config import MemoryConfig
from tokenvm.engine.geometry import geometry_of, raw_slots
from tokenvm.errors import ConfigError, LimitTooSmall
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.raw_layout import RawLayout

PART = 3 * 4096
"""A page of the tiny model whose parts fit 4 KiB."""


@pytest.mark.parametrize(("page_size", "kv_cache_dtype", "tokens"), [
    (PART, "auto", 16), (2 * PART, "auto", 32), (2 * PART - 1, "auto", 16), (1 << 40, "auto", 256),
    (PART, "int8", 16), (PART, "fp8", 16), (2 * PART, "int8", 48), (2 * PART, "fp8", 48),
])  # fmt: skip
def test_page_size_gives_the_most_tokens_that_fit(page_size: int, kv_cache_dtype: str, tokens: int) -> None:
    memory = MemoryConfig(page_size=page_size, kv_cache_dtype=kv_cache_dtype)
    assert geometry_of(tiny_model(), memory).block_tokens == tokens


def test_a_page_size_below_16_tokens_is_refused() -> None:
    with pytest.raises(LimitTooSmall, match=f"page_size={PART} or more") as caught:
        geometry_of(tiny_model(), MemoryConfig(page_size=PART - 1))
    assert caught.value.minimum_bytes == PART


@pytest.mark.parametrize(
    ("dtype", "layers", "slots"), [(torch.float32, 3, 3), (torch.float32, 4, 2), (torch.bfloat16, 3, 1)]
)
def test_raw_parts_of_all_layers_lie_apart_in_their_slots(
    dtype: torch.dtype, layers: int, slots: int
) -> None:
    geometry = geometry_of(tiny_model(dtype, layers), MemoryConfig(block_tokens=16, kv_cache_dtype="int8"))
    layout = PageLayout(layers, geometry.part_bytes)
    raw = RawLayout(layout, geometry.raw.part_bytes)
    assert raw.slots == raw_slots(layout, geometry) == slots
    places = sorted((raw.slot_of(layer), raw.offset_of(layer)) for layer in range(layers))
    assert places[-1][0] == slots - 1
    for (slot, offset), (next_slot, next_offset) in pairwise(places):
        assert next_slot > slot or next_offset - offset >= geometry.raw.part_bytes
    assert all(offset + geometry.raw.part_bytes <= layout.page_bytes for _, offset in places)


def test_an_exact_format_needs_no_slot_beside_its_own() -> None:
    geometry = geometry_of(tiny_model(), MemoryConfig(block_tokens=16))
    assert raw_slots(PageLayout(3, geometry.part_bytes), geometry) == 0


def test_a_model_with_too_few_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'at least 2 layers.*use kv_cache_dtype="auto"'):
        geometry_of(tiny_model(torch.float32, layers=1), MemoryConfig(block_tokens=16, kv_cache_dtype="int8"))
