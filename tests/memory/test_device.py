"""The arena: addresses, zeroing, poison."""

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenvm.memory.cpu import AnonymousRegion, CpuDevice
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.layout import HUGE_BYTES, PageLayout

LAYOUT = PageLayout(layers=3, part_bytes=5000)


def page(arena: DeviceArena, slot: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * LAYOUT.page_bytes).from_address(arena.address(slot)))


@pytest.fixture
def device():
    device = CpuDevice(threads=1)
    yield device
    device.close()


def test_addresses_follow_the_strides(device: CpuDevice) -> None:
    arena = DeviceArena(device, 4, LAYOUT)
    for slot in range(4):
        for layer in range(3):
            expected = arena.base + slot * LAYOUT.page_bytes + layer * LAYOUT.part_stride
            assert arena.address(slot, layer) == expected
    table = arena.addresses(np.array([2, 0])[:, None], np.arange(3))
    assert table.tolist() == [[arena.address(slot, layer) for layer in range(3)] for slot in (2, 0)]
    assert arena.addresses([1, 3]).tolist() == [arena.address(1), arena.address(3)]


def test_filling_touches_one_page(device: CpuDevice) -> None:
    arena = DeviceArena(device, 3, LAYOUT)
    for slot in range(3):
        arena.fill(slot, slot + 1)
    arena.fill(1)
    assert [set(page(arena, slot).tolist()) for slot in range(3)] == [{1}, {0}, {3}]


@pytest.mark.parametrize("poison", [True, False])
def test_freed_slots_are_nan_where_poison_is_on(device: CpuDevice, poison: bool) -> None:
    arena = DeviceArena(device, 3, LAYOUT, poison=poison)
    arena.freed([0, 2])
    assert np.isnan(page(arena, 2).view(np.float32)).all() == poison
    assert np.isnan(page(arena, 0).view(np.float16)).all() == poison
    assert not page(arena, 1).any()
    arena.freed([])


@pytest.mark.parametrize("nbytes", [1, 4096, HUGE_BYTES - 4096, HUGE_BYTES, 5 * HUGE_BYTES // 2, 85 * 98304])
def test_large_regions_begin_at_a_huge_page(nbytes: int) -> None:
    region = AnonymousRegion(nbytes)
    assert nbytes <= region.nbytes < nbytes + 4096
    assert region.address % (HUGE_BYTES if nbytes >= HUGE_BYTES else 4096) == 0
    whole = (ctypes.c_uint8 * region.nbytes).from_address(region.address)
    assert not np.frombuffer(whole, np.uint8).any()
    ctypes.memset(region.address, 7, region.nbytes)
    region.close()
    assert region.closed
