"""Linear layers of a module tree, packed for the kernels here: quicker, and a row's bits depend on that row alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from tokenvm.kernels.linear import PackedMatrix, linear, pack
from tokenvm.kernels.norm import add_rows, cast
from tokenvm.kernels.weight_memory import WeightMemory


class PackedProduct(torch.nn.Module):
    """x [..., K] @ w.T + bias → [..., N], x and the result in the weight's dtype; stands in for an nn.Linear.

    `weight` is empty and only says the dtype.
    """

    def __init__(self, layer: torch.nn.Linear, memory: WeightMemory) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.matrix: PackedMatrix = pack(layer.weight.detach().contiguous(), memory)
        self.weight = torch.empty(0, dtype=layer.weight.dtype)
        self.bias = None if layer.bias is None else layer.bias.detach().float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply every row."""
        sums = linear(x.reshape(-1, self.in_features).contiguous(), self.matrix)
        if self.bias is not None:
            add_rows(sums, self.bias)
        out = sums if x.dtype is torch.float32 else cast(sums, x.dtype)
        return out.view(*x.shape[:-1], self.out_features)


def pack_products(module: Any) -> tuple[torch.Tensor, ...]:
    """Replace the linear layers of a module tree, one by one, and return what their packed weights lie in.

    A layer that shares its weight, as a tied head does, is left as it is.
    """
    memory, packed = WeightMemory(), []
    shared = _shared_weights(module)
    places = [
        (parent, name, layer)
        for parent in module.modules()
        for name, layer in parent.named_children()
        if type(layer) is torch.nn.Linear and layer.weight.data_ptr() not in shared
    ]
    for parent, name, layer in places:
        product = PackedProduct(layer, memory)
        setattr(parent, name, product)
        layer.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
        packed.append(product.matrix.storage)
        if product.bias is not None:
            packed.append(product.bias)
    return tuple(packed)


def _shared_weights(module: Any) -> set[int]:
    """Addresses of weights that more than one module holds."""
    parts = [weight.data_ptr() for part in module.modules() for weight in part.parameters(recurse=False)]
    return {address for address, times in Counter(parts).items() if times > 1}
