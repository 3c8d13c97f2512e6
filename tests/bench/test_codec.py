"""The measurement of codecs: what it counts, and that it notices a codec which loses something."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from tokenvm.bench.codec import Coder, entropy_bytes, known_coders, measure
from tokenvm.bench.seed import Pages


def pages(values: int) -> Pages:
    """Two pages of three layers whose bytes take `values` different values."""
    rng = np.random.default_rng(0)
    return Pages(rng.integers(0, values, (2, 3, 1024), dtype=np.uint8))


def test_entropy_of_even_bytes_is_their_logarithm() -> None:
    cycle = np.tile(np.arange(16, dtype=np.uint8), 64)
    parts = np.stack([cycle, np.zeros_like(cycle)], axis=1).reshape(1, 1, -1)
    assert entropy_bytes(parts) == pytest.approx(cycle.size / 2), "four bits of one half, none of the other"


def test_every_codec_is_measured_on_every_part() -> None:
    coders, skipped = known_coders()
    report = measure(pages(4), "noise", coders, skipped, 2, Console(file=io.StringIO()))
    rows = {row["codec"]: row for row in report.figures["rows"]}
    assert rows["none (a copy)"]["ratio"] == 1.0
    assert 2 < rows["zlib, level 1"]["ratio"] < report.figures["entropy_ratio"] + 0.1
    assert report.figures["nbytes"] == 6 * 1024
    assert all(min(row["decode_bytes_per_s"]) > 0 for row in rows.values())


def test_a_codec_that_loses_something_is_noticed() -> None:
    lossy = Coder("lossy", lambda part: part & 0xFE, np.copy)
    with pytest.raises(AssertionError, match="lossy is not lossless"):
        measure(pages(256), "noise", [lossy], {}, 1, Console(file=io.StringIO()))
