"""Lossy formats: codes and scales to the bit, and what comes back, at every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tokenvm.kernels import native, paging, quantise, reference
from tokenvm.kernels.paging import PartGeometry

FORMATS = ["int8", "fp8"]
DTYPES = [torch.bfloat16, torch.float32]
SIZES = [(1, 32, 16), (3, 64, 128), (2, 80, 48), (5, 34, 16), (1, 2, 16), (2, 50, 48)]
NAN = 0x7FC00000


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    level = native.isa()
    yield
    native.set_isa(level)


def raw_part(k: torch.Tensor, v: torch.Tensor, geometry: PartGeometry) -> torch.Tensor:
    part = torch.empty(geometry.raw.part_bytes, dtype=torch.uint8)
    paging.write_part(part.data_ptr(), geometry.raw, k, v)
    return part


def addresses(*parts: torch.Tensor) -> np.ndarray:
    return np.array([part.data_ptr() for part in parts], dtype=np.uint64)


def random(geometry: PartGeometry, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys with large channels, values with large tokens."""
    source = torch.Generator().manual_seed(seed)
    shape = (geometry.kv_heads, geometry.block_tokens, geometry.head_dim)
    k, v = torch.randn(shape, generator=source), torch.randn(shape, generator=source)
    k[:, :, ::5] *= 40.0
    v[:, ::3] *= 1e-3
    return k.to(geometry.dtype), v.to(geometry.dtype)


def everywhere(k: torch.Tensor, v: torch.Tensor, geometry: PartGeometry) -> tuple[torch.Tensor, ...]:
    """(part, k, v) after quantising and dequantising: the same bits at every level, and those of the reference.

    Only which NaN torch makes of a NaN is its own affair.
    """
    raw, results = raw_part(k, v, geometry), []
    for level in (*native.isa_levels(), "reference"):
        kernels = reference if level == "reference" else quantise
        if kernels is quantise:
            native.set_isa(level)
        part = torch.zeros(geometry.part_bytes, dtype=torch.uint8)
        kernels.quantise(addresses(raw), addresses(part), geometry)
        results.append((level, part, *kernels.dequantise(part.data_ptr(), geometry)))
    for level, *tensors in results[1:]:
        for got, wanted in zip(tensors, results[0][1:], strict=True):
            if level == "reference" and got.is_floating_point():
                got = torch.where(got.isnan() & wanted.isnan(), wanted, got)
            assert torch.equal(got.view(torch.uint8), wanted.view(torch.uint8)), f"{level} differs"
    return results[0][1:]


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kv_format", FORMATS)
def test_every_instruction_set_agrees_with_the_reference(
    kv_format: str, sizes: tuple[int, int, int], dtype: torch.dtype
) -> None:
    geometry = PartGeometry(*sizes, dtype, kv_format)
    k, v = random(geometry)
    _, k_back, v_back = everywhere(k, v, geometry)
    if kv_format == "int8":  # half a step, a step being the largest of the channel or token over 127
        k_step, v_step = k.float().abs().amax(1, keepdim=True), v.float().abs().amax(2, keepdim=True)
        allowed = 0.5 / 127 + 2**-8
    else:  # half of the last of 3 bits of mantissa, and half a step of the smallest numbers
        k_step, v_step = (x.float().abs() * 16 + x.float().abs().max() / 448 for x in (k, v))
        allowed = 2**-8 + 2**-8
    assert ((k_back.float() - k.float()).abs() <= k_step * allowed).all()
    assert ((v_back.float() - v.float()).abs() <= v_step * allowed).all()


@pytest.mark.parametrize("kv_format", FORMATS)
def test_every_code_comes_back_as_itself(kv_format: str) -> None:
    """A head whose elements are exactly the numbers of the format loses nothing."""
    geometry = PartGeometry(1, 16, 16, torch.float32, kv_format)
    kind = torch.int8 if kv_format == "int8" else torch.float8_e4m3fn
    values = torch.arange(256, dtype=torch.uint8).view(kind).float()
    values = values[values.isfinite() & (values != -128)]
    shuffled = torch.cat([values, torch.zeros(256 - len(values))]).view(1, 16, 16)
    largest = 127.0 if kv_format == "int8" else 448.0
    k, v = shuffled.clone(), shuffled.clone()
    k[:, 0], v[:, :, 0] = largest, largest
    _, k_back, v_back = everywhere(k, v, geometry)
    assert torch.equal(k_back, k)
    assert torch.equal(v_back, v)


@pytest.mark.parametrize("kv_format", FORMATS)
def test_halves_are_rounded_to_even(kv_format: str) -> None:
    geometry = PartGeometry(1, 16, 16, torch.float32, kv_format)
    k, v = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    largest, inputs, wanted = {
        "int8": (127.0, [0.5, 1.5, 2.5, -0.5, -1.5, 126.5], [0.0, 2.0, 2.0, 0.0, -2.0, 126.0]),
        "fp8": (
            448.0,
            [17.0, 19.0, -17.0, 2.0**-10, 3 * 2.0**-10, 15 * 2.0**-10],
            [16.0, 20.0, -16.0, 0.0, 2.0**-8, 2.0**-6],
        ),
    }[kv_format]
    k[0, 0], k[0, 1 : 1 + len(inputs), 3] = largest, torch.tensor(inputs)
    _, k_back, _ = everywhere(k, v, geometry)
    assert k_back[0, 1 : 1 + len(inputs), 3].tolist() == wanted


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_makes_its_scale_and_all_it_scales_nan(kv_format: str, bad: float) -> None:
    geometry = PartGeometry(2, 32, 16, torch.bfloat16, kv_format)
    k, v = random(geometry)
    k[1, 5, 3], v[1, 5, 3] = bad, bad
    part, k_back, v_back = everywhere(k, v, geometry)
    scales = part.view(2, -1)[:, 2 * 32 * 16 :].view(torch.int32)[:, : 48 if kv_format == "int8" else 2]
    expected = torch.zeros(2, 32 + 16 if kv_format == "int8" else 2, dtype=torch.bool)
    expected[1, [3, 32 + 5] if kv_format == "int8" else [0, 1]] = True
    assert torch.equal(scales == NAN, expected)
    k_nan, v_nan = torch.zeros_like(k, dtype=torch.bool), torch.zeros_like(v, dtype=torch.bool)
    k_nan[1, :, 3 if kv_format == "int8" else slice(None)] = True
    v_nan[1, 5 if kv_format == "int8" else slice(None)] = True
    assert torch.equal(k_back.isnan(), k_nan)
    assert torch.equal(v_back.isnan(), v_nan)


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-39, 2.0**-126, 2.0**-119, 3e38])
def test_zeros_tiny_and_huge_numbers(size: float, kv_format: str, dtype: torch.dtype) -> None:
    geometry = PartGeometry(1, 32, 16, dtype, kv_format)
    k, v = random(geometry)
    k, v = (torch.sign(x.float()).mul(size).to(dtype) for x in (k, v))
    _, k_back, v_back = everywhere(k, v, geometry)
    largest = 127 if kv_format == "int8" else 448
    if size / largest < 2.0**-126:
        assert not k_back.any()
        assert not v_back.any()
    else:
        assert torch.equal(k_back, k) or torch.allclose(k_back.float(), k.float(), rtol=1e-2)


def test_parts_are_counted_in_one_call() -> None:
    geometry = PartGeometry(3, 32, 16, torch.bfloat16, "int8")
    pages = [random(geometry, seed) for seed in range(5)]
    raws = [raw_part(k, v, geometry) for k, v in pages]
    together = [torch.zeros(geometry.part_bytes, dtype=torch.uint8) for _ in raws]
    quantise.quantise(addresses(*raws), addresses(*together), geometry)
    for raw, part in zip(raws, together, strict=True):
        alone = torch.zeros(geometry.part_bytes, dtype=torch.uint8)
        quantise.quantise(addresses(raw), addresses(alone), geometry)
        assert torch.equal(part, alone)


def test_raw_and_quantised_parts_are_not_confused() -> None:
    geometry = PartGeometry(1, 32, 16, torch.bfloat16, "fp8")
    k, v = random(geometry)
    part = raw_part(k, v, geometry)
    with pytest.raises(ValueError, match="raw"):
        paging.write_part(part.data_ptr(), geometry, k, v)
    with pytest.raises(ValueError, match="raw"):
        paging.read_part(part.data_ptr(), geometry)
    with pytest.raises(ValueError, match="lossy"):
        quantise.dequantise(part.data_ptr(), geometry.raw)
    with pytest.raises(ValueError, match="lossy"):
        quantise.quantise(addresses(part), addresses(part), geometry.raw)
    with pytest.raises(ValueError, match="int4"):
        PartGeometry(1, 32, 16, torch.bfloat16, "int4")
    with pytest.raises(ValueError, match="address"):
        quantise.quantise(np.zeros(1, np.uint64), addresses(part), geometry)


def test_sizes_of_smollm2() -> None:
    sizes = {
        kv_format: PartGeometry(3, 64, 128, torch.bfloat16, kv_format).part_bytes
        for kv_format in ("raw", *FORMATS)
    }
    assert sizes == {"raw": 98304, "int8": 51456, "fp8": 49344}
