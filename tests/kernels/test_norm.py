"""Row-wise kernels against the reference, over odd widths."""

from __future__ import annotations

import pytest
import torch

from tokenvm.kernels import norm, reference

WIDTHS = [1, 16, 33, 576]
DTYPES = [torch.float32, torch.bfloat16]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 1e-2


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm_agrees_with_reference(width: int, dtype: torch.dtype) -> None:
    x, weight = random(5, width), random(width)
    expected = reference.rms_norm(x, weight, 1e-5, dtype)
    torch.testing.assert_close(
        norm.rms_norm(x, weight, 1e-5, dtype), expected, rtol=tolerance(dtype), atol=1e-6
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_add_rms_norm_adds_in_place(width: int) -> None:
    x, delta, weight = random(5, width), random(5, width) * 3, random(width)
    added = x + delta
    result = norm.add_rms_norm(x, delta, weight, 1e-5, torch.float32)
    assert torch.equal(x, added)
    assert torch.equal(result, norm.rms_norm(added, weight, 1e-5, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("width", WIDTHS)
def test_silu_mul_agrees_with_reference(width: int, dtype: torch.dtype) -> None:
    gate_up = random(5, 2 * width) * 4
    expected = reference.silu_mul(gate_up, dtype)
    torch.testing.assert_close(norm.silu_mul(gate_up, dtype), expected, rtol=tolerance(dtype), atol=1e-6)


def test_silu_mul_of_large_gates_is_finite() -> None:
    gate_up = torch.tensor([[1e4, -1e4, 200.0, -200.0, 1.0, 1.0, 1.0, 1.0]])
    result = norm.silu_mul(gate_up, torch.float32)
    assert result[0, ::2].tolist() == [1e4, 200.0]
    assert result[0, 1::2].abs().max() < 1e-30


@pytest.mark.parametrize("count", [1, 16, 4097, 10000])
def test_cast_rounds_to_nearest_even(count: int) -> None:
    x = random(count)
    x[0] = float.fromhex("0x1.01p0")
    assert torch.equal(norm.cast(x, torch.bfloat16), x.bfloat16())
    assert torch.equal(norm.cast(x, torch.float32), x)


def test_cast_keeps_what_is_not_a_number() -> None:
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 3.4e38])
    assert torch.equal(norm.cast(odd, torch.bfloat16).isnan(), torch.tensor([True, False, False, False]))
    assert torch.equal(norm.cast(odd[1:], torch.bfloat16), odd[1:].bfloat16())


def test_other_result_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="float16"):
        norm.cast(random(4), torch.float16)
    with pytest.raises(ValueError, match="weight"):
        norm.rms_norm(random(2, 4), random(5), 1e-5, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("width", WIDTHS)
def test_gelu_mul_agrees_with_reference(width: int, dtype: torch.dtype) -> None:
    gate_up = random(5, 2 * width) * 4
    expected = reference.gelu_mul(gate_up, dtype)
    torch.testing.assert_close(norm.gelu_mul(gate_up, dtype), expected, rtol=tolerance(dtype), atol=1e-6)


def test_gelu_mul_of_large_gates_is_finite() -> None:
    gate_up = torch.tensor([[1e6, -1e6, 20.0, -20.0, 1.0, 1.0, 1.0, 1.0]])
    assert norm.gelu_mul(gate_up, torch.float32)[0].tolist() == pytest.approx([1e6, 0, 20.0, 0], abs=1e-30)


@pytest.mark.parametrize("head_dim", [2, 16, 33, 128])
def test_norm_heads_changes_the_heads_that_are_named(head_dim: int) -> None:
    x, weight = random(5, 6, head_dim), random(head_dim)
    expected = reference.norm_heads(x.clone(), 1, 3, weight, 1e-5)
    found = norm.norm_heads(x.clone(), 1, 3, weight, 1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[:, [0, 4, 5]], x[:, [0, 4, 5]])
    one = norm.norm_heads(x[2:3].clone(), 1, 3, weight, 1e-5)
    assert torch.equal(one, found[2:3])


def test_norm_heads_refuses_heads_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="heads 4 to 7 are not among 6"):
        norm.norm_heads(torch.zeros(1, 6, 4), 4, 3, torch.ones(4), 1e-5)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_add_rows_adds_a_row_each_or_one_to_all(width: int, rows: int) -> None:
    x, each, one = random(rows, width), random(rows, width) * 3, random(width)
    for added in (each, one):
        assert torch.equal(norm.add_rows(x.clone(), added), x + added)
        assert torch.equal(norm.add_rows(x.clone(), added), reference.add_rows(x.clone(), added))
    with pytest.raises(ValueError, match="added"):
        norm.add_rows(x, random(width + 1))
