"""The memory of weights: places in order, aligned, apart, alive as long as somebody holds one."""

from __future__ import annotations

import torch

from tokenvm.kernels import linear
from tokenvm.kernels.weight_memory import WeightMemory


def test_places_follow_one_another_and_do_not_overlap() -> None:
    memory = WeightMemory(4096)
    places = [memory.take(nbytes) for nbytes in (1, 64, 65, 100, 3000)]
    starts = [place.data_ptr() for place in places]
    assert starts[0] % (2 << 20) == 0
    assert [start - starts[0] for start in starts] == [0, 64, 128, 256, 384]
    for number, place in enumerate(places):
        place.fill_(number)
    assert all(bool((place == number).all()) for number, place in enumerate(places))


def test_a_stretch_that_is_full_is_followed_by_another() -> None:
    memory = WeightMemory(4096)
    first, second, third = memory.take(4000), memory.take(200), memory.take(9000)
    assert [place.numel() for place in (first, second, third)] == [4000, 200, 9000]
    assert [place.data_ptr() % (2 << 20) for place in (second, third)] == [0, 0]
    assert not bool(third.any())


def test_a_place_outlives_its_memory() -> None:
    place = WeightMemory(4096).take(128)
    place.fill_(7)
    assert place.tolist() == [7] * 128


def test_matrices_that_share_memory_multiply_like_others() -> None:
    g = torch.Generator().manual_seed(0)
    weight, x, memory = torch.randn(50, 70, generator=g), torch.randn(3, 70, generator=g), WeightMemory(4096)
    for dtype in (torch.float32, torch.bfloat16):
        packed, alone = linear.pack(weight.to(dtype), memory), linear.pack(weight.to(dtype))
        assert torch.equal(packed.storage, alone.storage)
        assert torch.equal(linear.linear(x.to(dtype), packed), linear.linear(x.to(dtype), alone))
