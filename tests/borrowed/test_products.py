"""Linear layers of a module tree are replaced by packed ones that compute the same, each row by itself."""

from __future__ import annotations

import pytest
import torch

from tokenvm.borrowed.products import PackedProduct, pack_products


class Tree(torch.nn.Module):
    """An embedding that shares its weight with the head, and two layers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(40, 24, dtype=dtype)
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(24, 24, bias=bias, dtype=dtype) for bias in (True, False)
        )
        self.head = torch.nn.Linear(24, 40, bias=False, dtype=dtype)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_the_same_is_computed_by_packed_layers(dtype: torch.dtype, tolerance: float) -> None:
    tree, ids = Tree(dtype), torch.arange(40)[None]
    with torch.inference_mode():
        expected = tree(ids)
        packed = pack_products(tree)
        found = tree(ids)
    assert [type(layer) for layer in tree.layers] == [PackedProduct] * 2
    assert type(tree.head) is torch.nn.Linear, "a shared weight would lie in memory twice"
    assert len(packed) == 3
    assert found.dtype is dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_alone_has_the_bits_it_has_among_others(dtype: torch.dtype) -> None:
    tree = Tree(dtype)
    pack_products(tree)
    x = torch.randn(1, 33, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    for layer in tree.layers:
        whole = layer(x)
        assert torch.equal(layer(x[:, 7:8]), whole[:, 7:8])
        assert torch.equal(layer(x[0, 9:20]), whole[0, 9:20])
