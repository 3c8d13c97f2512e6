"""The bitpack kernels: every instruction set writes the bytes of the reference, and reads them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenvm.kernels import bitpack, bitpack_reference, native

Bytes = NDArray[np.uint8]
PARTS = 4


@pytest.fixture(params=native.isa_levels(), autouse=True)
def _level(request: pytest.FixtureRequest) -> Iterator[None]:
    before = native.isa()
    native.set_isa(request.param)
    yield
    native.set_isa(before)


def words(exponents: NDArray[np.int64], seed: int) -> Bytes:
    rests = np.random.default_rng(seed).integers(0, 256, exponents.size)
    return ((rests & 0x80) << 8 | exponents << 7 | (rests & 0x7F)).astype("<u2").view(np.uint8)


def parts(spread: int) -> list[Bytes]:
    """Exponents that lie a random depth below 130, up to `spread`, so that every kind of escape occurs."""
    rng = np.random.default_rng(spread)
    depths = [np.minimum(rng.geometric(0.4, 1024), spread + 1) - 1 for _ in range(PARTS)]
    return [words(130 - depth, seed) for seed, depth in enumerate(depths)]


SAMPLES = [*parts(2), *parts(12), *parts(40), words(np.arange(256), 0), words(np.arange(256)[::-1] % 7, 1)]


@pytest.mark.parametrize("part", SAMPLES)
def test_the_bytes_of_the_reference(part: Bytes) -> None:
    wanted = bitpack_reference.encode(part)
    stored = np.zeros(wanted.size + 5, np.uint8)
    assert bitpack.encode(part, stored) == wanted.size
    assert (stored[: wanted.size] == wanted).all()
    for given in (stored[: wanted.size], stored):
        back = np.full(part.size, 0xA5, np.uint8)
        assert bitpack.decode(given, back)
        assert (back == part).all()
        assert (bitpack_reference.decode(given, part.size) == part).all()


@pytest.mark.parametrize("part", SAMPLES)
def test_one_byte_less_is_no_room(part: Bytes) -> None:
    wanted = bitpack_reference.encode(part)
    assert bitpack.encode(part, np.zeros(wanted.size - 1, np.uint8)) == 0


def test_the_size_of_a_part_without_escapes() -> None:
    part = words(np.full(512, 120), 3)
    assert bitpack.encode(part, np.zeros(1024, np.uint8)) == 2 * bitpack.FIXED_BYTES


def test_escapes_that_end_too_soon_are_said() -> None:
    part = words(np.arange(256), 0)
    stored = bitpack_reference.encode(part)
    back = np.zeros(part.size, np.uint8)
    for room in (0, bitpack.FIXED_BYTES - 1, bitpack.FIXED_BYTES, stored.size - 1):
        assert not bitpack.decode(stored[:room], back)


@pytest.mark.parametrize("nbytes", [0, 512, 5120])
def test_any_bytes_give_the_same_values_everywhere(nbytes: int) -> None:
    junk = np.random.default_rng(nbytes).integers(0, 256, 2 * nbytes, dtype=np.uint8)
    back = np.zeros(nbytes, np.uint8)
    assert bitpack.decode(junk, back)
    assert (back == bitpack_reference.decode(junk, nbytes)).all()


@pytest.mark.parametrize(
    "bad", [np.zeros(100, np.uint8), np.zeros(512, np.int8), np.zeros((2, 512), np.uint8)]
)
def test_parts_that_cannot_be_are_refused(bad: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError):
        bitpack.encode(bad, np.zeros(1024, np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        bitpack.decode(np.zeros(1024, np.uint8), bad)  # type: ignore[arg-type]
