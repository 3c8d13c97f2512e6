"""Tensors of many pages on a device of a few: the numbers of ordinary tensors."""

from __future__ import annotations

import random

import pytest
import torch

from tokenvm.bridges.paged_memory import PagedMemory
from tokenvm.config import MemoryConfig
from tokenvm.errors import ConfigError, LimitTooSmall, RequestError, StorageError
from tokenvm.tensor_memory import MemoryHint
from tokenvm.tensors import PagedTensor
from tokenvm.vocab import Tier

PAGE = 4096


@pytest.fixture
def memory(disk_path):
    config = MemoryConfig(vram_limit=10 * PAGE, page_size=PAGE, nvme_path=disk_path, nvme_limit="4MB")
    with PagedMemory(config) as opened:
        yield opened


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spilled(memory):
    return memory.stats()["moved_bytes"]["nvme_write"]


def test_what_is_read_back_is_what_was_written(memory):
    want = numbers(40, 1000)
    tensor = PagedTensor.of(want)
    assert spilled(memory) > 0
    for _ in range(2):
        assert torch.equal(tensor.tensor(), want)
    assert memory.stats()["moved_bytes"]["nvme_read"] > 0
    assert memory.stats()["high_water_bytes"]["device"] <= 10 * PAGE


def test_reductions_and_elementwise_operations(memory):
    a, b = numbers(12_345), numbers(12_345, seed=1)
    x, y = PagedTensor.of(a), PagedTensor.of(b)
    torch.testing.assert_close(x.sum(), a.sum())
    torch.testing.assert_close(x.mean(), a.mean())
    assert (x.max(), x.min()) == (a.max(), a.min())
    assert torch.equal(((x + y) * 2 - y / 4).tensor(), (a + b) * 2 - b / 4)
    assert torch.equal((-x).tensor(), -a)
    assert torch.equal(x.map(torch.relu).tensor(), a.relu())
    assert spilled(memory) > 0


def test_a_matrix_times_a_matrix(memory):
    a, b = numbers(300, 100), numbers(100, 7, seed=1)
    torch.testing.assert_close(PagedTensor.of(a) @ b, a @ b)
    with pytest.raises(RequestError, match="do not fit"):
        PagedTensor.of(a) @ b.T


def test_slices_are_read_and_written(memory):
    want, rng = numbers(90, 333), random.Random(0)
    tensor = PagedTensor.of(want)
    for _ in range(40):
        begin, end = sorted(rng.sample(range(-90, 91), 2))
        assert torch.equal(tensor[begin:end], want[begin:end])
        value = numbers(*want[begin:end].shape, seed=end)
        tensor[begin:end] = value
        want[begin:end] = value
        assert torch.equal(tensor[end - 1], want[end - 1])
    assert torch.equal(tensor.tensor(), want)
    with pytest.raises(RequestError, match="step 1"):
        tensor[::2]
    with pytest.raises(IndexError):
        tensor[90]


def test_memory_is_given_back_with_the_tensor(memory):
    tensor = PagedTensor(30_000, dtype=torch.int64)
    assert tensor.sum() == 0
    del tensor
    memory.vm.finish_transfers()
    assert sum(memory.stats()["used_bytes"].values()) == 0


def test_allocations_come_to_the_device_and_leave_it(memory):
    kept = memory.allocate(2 * PAGE, MemoryHint.KEEP)
    with memory.writing(kept, 1) as page:
        page[:] = 7
    others = [memory.allocate(3 * PAGE) for _ in range(4)]
    for _ in range(2):
        for address in others:
            assert len(memory.ensure_resident(address)) == 3
    pages = memory._allocations[kept].pages
    assert all(memory.vm.ledger.resident(unit, Tier.DEVICE) for unit in pages)
    used = memory.stats()["used_bytes"]["device"]
    assert memory.evict_pages(2) == 2 * PAGE // PAGE
    assert memory.stats()["used_bytes"]["device"] == used - 2 * PAGE
    ((first, second),) = zip(*(page for (page,) in ((one,) for one in memory.scan(kept))), strict=True)
    assert (int(first.max()), int(second.min())) == (0, 7)
    memory.deallocate(kept)
    with pytest.raises(RequestError, match="no allocation"):
        memory.deallocate(kept)


def test_what_makes_no_sense_is_refused(memory, disk_path):
    with pytest.raises(RequestError, match="at least one byte"):
        memory.allocate(0)
    with pytest.raises(StorageError, match="raise vram_limit"):
        memory.ensure_resident(memory.allocate(40 * PAGE))
    with pytest.raises(RequestError, match="one shape"):
        PagedTensor(3) + PagedTensor(4)
    with pytest.raises(RequestError, match="holds nothing"):
        PagedTensor(0)
    with pytest.raises(ConfigError, match="compression"):
        PagedMemory(MemoryConfig(compression="bitpack"))
    with pytest.raises(LimitTooSmall):
        PagedMemory(MemoryConfig(vram_limit=PAGE, page_size=PAGE))


def test_without_a_memory_there_is_no_tensor():
    with pytest.raises(RequestError, match="with PagedMemory"):
        PagedTensor(3)


def test_after_its_end_a_memory_is_refused(disk_path):
    with PagedMemory(
        MemoryConfig(vram_limit=10 * PAGE, page_size=PAGE, nvme_path=disk_path, nvme_limit="4MB")
    ) as memory:
        tensor = PagedTensor(5000)
        begun = tensor.chunks()
        next(begun)
    uses = (
        tensor.tensor,
        tensor.sum,
        lambda: tensor[0],
        lambda: tensor.__setitem__(0, 1.0),
        lambda: next(begun),
        lambda: PagedTensor(3, memory),
        lambda: memory.ensure_resident(tensor.address),
        lambda: memory.evict_pages(1),
    )
    for use in uses:
        with pytest.raises(RequestError, match="memory is closed"):
            use()
    memory.deallocate(tensor.address)
    memory.close()


def test_results_of_another_dtype_are_refused_by_name(memory):
    whole = PagedTensor(10, dtype=torch.int64)
    for work in (lambda: whole / 2, lambda: whole * 0.5, lambda: whole.map(torch.sqrt)):
        with pytest.raises(RequestError, match=r"torch\.float32 does not fit a PagedTensor of torch\.int64"):
            work()
    with pytest.raises(RequestError, match="does not fit"):
        whole[0] = 2.5
    with pytest.raises(RequestError, match=r"PagedTensor\.of"):
        whole + torch.ones(10, dtype=torch.int64)
    assert (whole + 3).sum() == 30


def test_numbers_stand_on_either_side(memory):
    a = numbers(3000)
    x = PagedTensor.of(a)
    assert torch.equal((2 * x).tensor(), 2 * a)
    assert torch.equal((1 + x).tensor(), 1 + a)
    assert torch.equal((1 - x).tensor(), 1 - a)


def test_half_precision_is_added_in_a_wide_one(memory):
    x = PagedTensor(4096, dtype=torch.float16) + 40
    assert x.mean() == 40  # though the sum is beyond float16
    assert x.sum().isinf()
    assert (x / 4096).sum() == torch.full((4096,), 40 / 4096, dtype=torch.float16).double().sum().half()


def test_what_is_given_back_is_not_remembered(memory):
    for _ in range(50):
        PagedTensor(1000)
    assert len(memory._unwritten) == 0
    tensor = PagedTensor(1000)
    for row in range(50):
        tensor[row] = 1.0
    assert len(memory._unwritten) == 1
