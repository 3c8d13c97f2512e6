"""Sizes as people write them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvm.errors import ConfigError
from tokenvm.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("64MB", 64 * 10**6),
        ("512MiB", 512 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("0.1GB", 10**8),
        (" 7 kb ", 7000),
        ("1TiB", 2**40),
        ("12", 12),
        ("12B", 12),
        (0, 0),
        (4096, 4096),
        ("1.0000000000000001TB", 10**12),
    ],
)
def test_sizes_are_bytes(text: Any, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lots",
        "GB",
        "-1GB",
        -1,
        "1e9",
        "1,5GB",
        "5 apples",
        "1GBB",
        1.5,
        None,
        True,
        [],
        "9999999TB",
        2**63,
        "٣MB",
    ],
)
def test_nonsense_is_refused_by_name(text: Any) -> None:
    with pytest.raises(ConfigError, match=r'kv_limit=.*"24GB"'):
        parse_size(text, "kv_limit")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (64 * 10**6, "64 MB"),
        (1_500_000_000, "1.5 GB"),
        (2**20, "1.049 MB"),
    ],
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 10**15))
def test_what_is_written_is_read_back_within_its_digits(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= size / 1000
