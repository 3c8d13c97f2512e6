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
