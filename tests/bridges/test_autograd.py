"""Gradients through pages are those of PyTorch."""

from __future__ import annotations

import pytest
import torch

from tokenvm.bridges.autograd import PagedLinear, paged_activations
from tokenvm.bridges.paged_memory import PagedMemory
from tokenvm.config import MemoryConfig
from tokenvm.errors import RequestError
from tokenvm.tensors import PagedTensor

PAGE = 4096


def small(disk_path, pages=10):
    return MemoryConfig(vram_limit=pages * PAGE, page_size=PAGE, nvme_path=disk_path, nvme_limit="64MB")


def test_the_gradients_of_a_paged_linear_map_are_right(disk_path):
    """Numerically, over a weight of several pages."""
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(400, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(400, dtype=torch.float64, requires_grad=True)
    with PagedMemory(small(disk_path)):
        assert torch.autograd.gradcheck(PagedLinear.apply, (x, weight, bias), fast_mode=True)
        assert torch.autograd.gradcheck(PagedLinear.apply, (x, weight, None), fast_mode=True)


def test_a_weight_in_pages_gathers_its_gradient_there(disk_path):
    x, dense = torch.randn(5, 60, requires_grad=True), torch.randn(700, 60, requires_grad=True)
    with PagedMemory(small(disk_path)) as memory:
        weight = PagedTensor.of(dense)
        weight.requires_grad = True
        for _ in range(2):
            PagedLinear.apply(x, weight, None).square().sum().backward()
            torch.nn.functional.linear(x.detach(), dense).square().sum().backward()
        torch.testing.assert_close(weight.grad.tensor(), dense.grad, rtol=1e-5, atol=1e-4)
        assert memory.stats()["moved_bytes"]["nvme_write"] > 0
        with pytest.raises(RequestError, match="do not fit"):
            PagedLinear.apply(torch.ones(3, 5), weight, None)


def test_a_training_step_with_activations_beyond_the_limit_gives_the_same_gradients(disk_path):
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (torch.nn.Linear(96, 96), torch.nn.GELU())]
    model = torch.nn.Sequential(*layers)
    x = torch.randn(256, 96)
    model(x).square().mean().backward()
    want = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    limit = 60 * PAGE
    with paged_activations(small(disk_path, pages=60)) as memory:
        loss = model(x).square().mean()
        held = sum(memory.stats()["used_bytes"].values())
        loss.backward()
        stats = memory.stats()
    assert held > 4 * limit
    assert stats["high_water_bytes"]["device"] <= limit
    assert stats["moved_bytes"]["nvme_read"] > 0
    for parameter, grad in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-6)


def test_a_weight_in_pages_gets_its_gradient_where_nothing_else_wants_one(disk_path):
    x, dense = torch.randn(5, 60), torch.randn(70, 60, requires_grad=True)
    torch.nn.functional.linear(x, dense).square().sum().backward()
    with PagedMemory(small(disk_path)):
        weight = PagedTensor.of(dense)
        assert not PagedLinear.apply(x, weight, None).requires_grad
        weight.requires_grad = True
        PagedLinear.apply(x, weight, None).square().sum().backward()
        torch.testing.assert_close(weight.grad.tensor(), dense.grad, rtol=1e-5, atol=1e-4)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert not PagedLinear.apply(x, weight, None).requires_grad


def test_a_gradient_of_a_gradient_is_refused(disk_path):
    x = torch.randn(5, 60, requires_grad=True)
    with PagedMemory(small(disk_path)):
        loss = PagedLinear.apply(x, torch.randn(70, 60), None).square().sum()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            grad.sum().backward()


def test_frozen_parameters_stay_where_they_are(disk_path):
    model, x = torch.nn.Linear(200, 200), torch.randn(2, 200, requires_grad=True)
    model.weight.requires_grad = False
    with paged_activations(small(disk_path)) as memory:
        model(x).sum().backward()
        assert memory.stats()["high_water_bytes"]["device"] == 0
    assert x.grad is not None


def test_backward_after_the_block_is_refused(disk_path):
    x = torch.randn(200, 200, requires_grad=True)
    with paged_activations(small(disk_path, pages=60)):
        loss = (x * 2).square().sum()
    with pytest.raises(RequestError, match="memory is closed"):
        loss.backward()
