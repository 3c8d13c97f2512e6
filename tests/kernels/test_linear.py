"""Packed matrices against the reference, over odd sizes."""

from __future__ import annotations

import pytest
import torch

from tokenvm.kernels import linear, norm, reference

SHAPES = [(1, 1, 1), (1, 16, 32), (3, 20, 33), (16, 64, 576), (17, 100, 130), (70, 33, 96), (130, 272, 64)]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("rows", "outputs", "columns"), SHAPES)
def test_linear_agrees_with_reference(rows: int, outputs: int, columns: int, dtype: torch.dtype) -> None:
    w = linear.pack(random(outputs, columns, dtype=dtype))
    x = random(rows, columns, dtype=dtype)
    torch.testing.assert_close(
        linear.linear(x, w), reference.linear(x, w), rtol=1e-5, atol=1e-5 * columns**0.5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("outputs", "columns"), [(1, 1), (16, 32), (33, 31), (50, 576)])
def test_packing_keeps_every_weight(outputs: int, columns: int, dtype: torch.dtype) -> None:
    weight = random(outputs, columns, dtype=dtype)
    packed = linear.pack(weight)
    assert packed.storage.data_ptr() % 64 == 0
    assert packed.nbytes >= weight.nbytes
    assert torch.equal(reference.unpack(packed), weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_gather_reads_rows_of_the_weight(dtype: torch.dtype) -> None:
    weight, ids = random(50, 70, dtype=dtype), torch.tensor([49, 0, 17, 17])
    packed = linear.pack(weight)
    assert torch.equal(linear.gather_rows(packed, ids), weight[ids].float())
    assert torch.equal(reference.gather_rows(packed, ids), weight[ids].float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("rows", "outputs", "columns"), SHAPES)
def test_linear_add_is_linear_and_an_addition(
    rows: int, outputs: int, columns: int, dtype: torch.dtype
) -> None:
    w, x = linear.pack(random(outputs, columns, dtype=dtype)), random(rows, columns, dtype=dtype)
    out, twin = random(rows, outputs), random(rows, outputs)
    expected = out + linear.linear(x, w)
    assert linear.linear_add(x, w, out) is out
    assert torch.equal(out, expected)
    torch.testing.assert_close(reference.linear_add(x, w, twin), out, rtol=1e-5, atol=1e-5 * columns**0.5)


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(
    ("rows", "outputs", "columns"), [*((r, n + n % 2, k) for r, n, k in SHAPES), (40, 96, 576)]
)
def test_linear_silu_mul_is_linear_and_silu_mul(
    rows: int, outputs: int, columns: int, dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    w, x = linear.pack(random(outputs, columns, dtype=dtype)), random(rows, columns, dtype=dtype)
    result = linear.linear_silu_mul(x, w, out_dtype)
    assert torch.equal(result, norm.silu_mul(linear.linear(x, w), out_dtype))
    rough = 1e-2 if out_dtype is torch.bfloat16 else 1e-4
    torch.testing.assert_close(
        result, reference.linear_silu_mul(x, w, out_dtype), rtol=rough, atol=rough * columns**0.5
    )


def test_gates_without_ups_are_refused() -> None:
    with pytest.raises(ValueError, match="gates"):
        linear.linear_silu_mul(random(2, 40), linear.pack(random(21, 40)), torch.float32)


def test_results_go_into_the_buffer_that_is_given() -> None:
    w, x, out = linear.pack(random(20, 40)), random(3, 40), torch.empty(3, 20)
    assert linear.linear(x, w, out) is out
    assert torch.equal(out, linear.linear(x, w))


def test_a_k32_dot_is_two_chains_a_chunk() -> None:
    x, w = random(1, 64, dtype=torch.bfloat16), random(1, 64, dtype=torch.bfloat16)
    acc = torch.zeros((), dtype=torch.float32)
    for chunk in range(0, 64, 32):
        even, odd = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for k in range(chunk, chunk + 32, 2):
            # A product of two bf16 is exact in double, and so is its sum with a float but for one rounding.
            even = (x[0, k].double() * w[0, k].double() + even).float().double()
            odd = (x[0, k + 1].double() * w[0, k + 1].double() + odd).float().double()
        acc = acc + (even.float() + odd.float())
    assert linear.linear(x, linear.pack(w))[0, 0] == acc


@pytest.mark.parametrize(
    "x",
    [random(3, 41), random(3, 40, dtype=torch.bfloat16), random(40, 3).T, random(40)],
    ids=["columns", "dtype", "strides", "dimensions"],
)
def test_a_wrong_input_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="x must"):
        linear.linear(x, linear.pack(random(20, 40)))


@pytest.mark.parametrize("bad", [-1, 20])
def test_an_unknown_id_is_refused(bad: int) -> None:
    with pytest.raises(ValueError, match="id"):
        linear.gather_rows(linear.pack(random(20, 40)), torch.tensor([0, bad]))


def test_no_rows_give_no_rows() -> None:
    assert linear.linear(torch.empty(0, 40), linear.pack(random(20, 40))).shape == (0, 20)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="float16"):
        linear.pack(torch.zeros(4, 4, dtype=torch.float16))
