"""The measurement of codecs: what it counts, and that it notices a codec which loses something."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from tokenvm.bench.codec import Bytes, entropy_bytes, measure, usable_codecs
from tokenvm.bench.seed import Pages
from tokenvm.memory.codec import Bitpack, Identity
from tokenvm.vocab import Answer

QUIET = Console(file=io.StringIO())


def pages(part_bytes: int = 4096) -> Pages:
    """Two pages of three layers of bfloat16 ones and twos."""
    rng = np.random.default_rng(0)
    values = rng.choice(np.array([0x3F80, 0x4000], np.uint16), (2, 3, part_bytes // 2))
    return Pages(values.view(np.uint8))


def test_entropy_of_even_bytes_is_their_logarithm() -> None:
    cycle = np.tile(np.arange(16, dtype=np.uint8), 64)
    parts = np.stack([cycle, np.zeros_like(cycle)], axis=1).reshape(1, -1)
    assert entropy_bytes(parts) == pytest.approx(cycle.size / 2), "four bits of one half, none of the other"


def test_every_codec_is_measured_or_skipped_by_name() -> None:
    codecs, skipped = usable_codecs()
    names = {codec.name for codec in codecs}
    assert {"none", "bitpack"} <= names
    assert names | skipped.keys() >= {"none", "bitpack", "lz4", "zstd"}
    assert all("not installed" in why for why in skipped.values())


def test_the_ratio_counts_size_classes() -> None:
    report = measure(pages(12288), "ones", [Identity(), Bitpack()], {}, 2, QUIET)
    none, packed = report.figures["rows"]
    assert (none["ratio"], none["raw_share"]) == (1.0, 0.0)
    assert packed["ratio"] == pytest.approx(12288 / Bitpack().stored_bytes(12288))
    assert report.figures["nbytes"] == 6 * 12288
    assert min(min(row["decode_bytes_per_s"]) for row in (none, packed)) > 0


def test_parts_are_padded_as_in_a_tier() -> None:
    report = measure(pages(5000), "ones", [Identity()], {}, 1, QUIET)
    assert report.figures["part_bytes"] == 8192


class Lossy(Identity):
    name = "lossy"

    def decode(self, stored: Bytes, part: Bytes) -> Answer:
        answer = super().decode(stored, part)
        part[-1] ^= 1
        return answer


class Picky(Identity):
    """Takes only parts that begin with a one."""

    name = "picky"

    def encode(self, part: Bytes, stored: Bytes) -> Answer:
        return super().encode(part, stored) if part[1] == 0x3F else Answer.MISS


def test_a_codec_that_loses_something_is_noticed() -> None:
    with pytest.raises(AssertionError, match="lossy is not lossless"):
        measure(pages(), "ones", [Lossy()], {}, 1, QUIET)


def test_what_does_not_fit_counts_as_raw() -> None:
    made = pages()
    first = (made.parts[:, :, 1] == 0x3F).sum()
    assert 0 < first < 6
    (row,) = measure(made, "ones", [Picky()], {}, 1, QUIET).figures["rows"]
    assert row["raw_share"] == 1 - first / 6
