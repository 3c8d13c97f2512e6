"""Paging in training: a linear map whose weight lies in pages, and activations that wait there for their gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.autograd.function import once_differentiable

from tokenvm.bridges.paged_memory import PagedMemory
from tokenvm.config import MemoryConfig
from tokenvm.errors import RequestError
from tokenvm.tensor_memory import TensorMemory
from tokenvm.tensors import PagedTensor

SMALLEST_BYTES: Final = 64 << 10
"""Saved tensors below this stay where they are: a page is more than they take."""


class PagedLinear(torch.autograd.Function):
    """y = x @ weight.T + bias, the weight read from its pages a few rows at a time, forward and backward.

    `PagedLinear.apply(x, weight, bias)`: x [..., K]; weight [N, K], a tensor, which is copied into pages of the memory
    of the `with` block around it, or a PagedTensor; bias [N] or None. A tensor gets its gradient; a PagedTensor gets it
    in `weight.grad`, in pages of the same memory, if `weight.requires_grad` was set. Gradients have no gradients.
    """

    @classmethod
    def apply(
        cls, x: torch.Tensor, weight: torch.Tensor | PagedTensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See the class."""
        wanted = isinstance(weight, PagedTensor) and weight.requires_grad
        handle = torch.empty(0, requires_grad=wanted)
        y: torch.Tensor = super().apply(x, weight, bias, handle)  # type: ignore[no-untyped-call]
        return y

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | PagedTensor,
        bias: torch.Tensor | None,
        _wanted: torch.Tensor,
    ) -> torch.Tensor:
        """See the class."""
        paged = weight if isinstance(weight, PagedTensor) else PagedTensor.of(weight)
        if len(paged.shape) != 2 or x.shape[-1] != paged.shape[1]:
            raise RequestError(
                f"x {tuple(x.shape)} and a weight {tuple(paged.shape)} do not fit: the last sizes differ"
            )
        ctx.weight, ctx.has_bias = paged, bias is not None
        ctx.save_for_backward(x)
        y = torch.cat([x @ rows.T for rows in paged.row_blocks()], dim=-1)
        return y if bias is None else y + bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """See the class."""
        (x,), (grad,), weight = ctx.saved_tensors, grads, ctx.weight
        grad_x = grad_weight = grad_bias = None
        flat_grad, flat_x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[0]:
            grad_x, begin = torch.zeros_like(x), 0
            for rows in weight.row_blocks():
                grad_x += grad[..., begin : begin + len(rows)] @ rows
                begin += len(rows)
        if ctx.needs_input_grad[1]:
            grad_weight = flat_grad.T @ flat_x
        elif weight.requires_grad:
            _add_gradient(weight, flat_grad.T, flat_x)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = flat_grad.sum(0)
        return grad_x, grad_weight, grad_bias, None


def _add_gradient(weight: PagedTensor, grad: torch.Tensor, x: torch.Tensor) -> None:
    """Add grad [N, M] @ x [M, K] to `weight.grad`, made a few rows at a time."""
    columns = weight.shape[1]

    def make(begin: int, end: int) -> torch.Tensor:
        first, last = begin // columns, -(-end // columns)
        return (grad[first:last] @ x).reshape(-1)[begin - first * columns : end - first * columns]

    new = PagedTensor(weight.shape, weight.memory, weight.dtype, make=make)
    weight.grad = new if weight.grad is None else weight.grad + new


@contextmanager
def paged_activations(
    config: MemoryConfig | None = None, memory: TensorMemory | None = None
) -> Iterator[TensorMemory]:
    """Keep what a forward pass saves for its backward pass in pages, within the limits of `config`.

    Forward and backward both belong into the block. Parameters, and tensors below 64 KiB, stay where they are.
    Gradients are those of plain PyTorch, bit for bit: bytes go down and come back. Raises as `PagedMemory`.
    """
    own = PagedMemory(config) if memory is None else None
    pages = memory or own
    assert pages is not None, "one of both is there"

    def pack(tensor: torch.Tensor) -> torch.Tensor | PagedTensor:
        small = tensor.nbytes < SMALLEST_BYTES or tensor.device.type != "cpu"
        return tensor if small or _is_parameter(tensor) else PagedTensor.of(tensor, pages)

    def unpack(saved: torch.Tensor | PagedTensor) -> torch.Tensor:
        return saved.tensor() if isinstance(saved, PagedTensor) else saved

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield pages
    finally:
        if own is not None:
            own.close()


def _is_parameter(tensor: torch.Tensor) -> bool:
    """Whether it is a parameter, frozen or not, or shows one in another order: its bytes are kept anyway."""
    shown = tensor if tensor._base is None else tensor._base
    return isinstance(shown, torch.nn.Parameter) or (shown.is_leaf and shown.requires_grad)
