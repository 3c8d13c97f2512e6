"""How small real KV becomes under lossless codecs, and how fast. One pays if it decodes faster than the disk reads."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from tokenvm.bench.figures import Spread, spread
from tokenvm.bench.report import Grid, Report, machine
from tokenvm.bench.seed import Pages
from tokenvm.errors import ConfigError
from tokenvm.memory.codec import CODECS, Codec, make_codec
from tokenvm.memory.layout import PageLayout
from tokenvm.vocab import Answer

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Timing:
    """One pass over all parts: seconds to encode and to decode them, and how many did not fit their size class."""

    encode_s: float
    decode_s: float
    raw_parts: int


def measure(
    pages: Pages,
    source: str,
    codecs: Sequence[Codec],
    skipped: Mapping[str, str],
    rounds: int,
    console: Console,
) -> Report:
    """Put every part of `pages` through every codec in turn, `rounds` times; what comes back must be what went in."""
    parts = _padded(pages)
    samples: dict[str, list[Timing]] = {codec.name: [] for codec in codecs}
    for turn in range(rounds):
        for codec in codecs:
            console.print(f"round {turn + 1} of {rounds}, {codec.name}", style="dim")
            samples[codec.name].append(_pass(codec, parts))
    rows = [_row(codec, parts, samples[codec.name]) for codec in codecs]
    figures = {
        "bench": "codec",
        "source": source,
        "nbytes": parts.nbytes,
        "part_bytes": parts.shape[1],
        "entropy_ratio": parts.nbytes / entropy_bytes(parts),
        "rows": rows,
        "skipped": dict(skipped),
        "machine": machine(),
    }
    return Report("codec", figures, [_grid(rows)], _notes(figures))


def usable_codecs() -> tuple[list[Codec], dict[str, str]]:
    """Return the codecs that can be made here, and why others cannot."""
    found: list[Codec] = []
    skipped: dict[str, str] = {}
    for name in CODECS:
        try:
            found.append(make_codec(name))
        except ConfigError as why:
            skipped[name] = str(why)
    return found, skipped


def entropy_bytes(parts: Bytes) -> float:
    """Return the bytes that a code of single bytes could not go below: first and second byte of a value by themselves.

    A bfloat16 value is sign and exponent in the one, the rest of the exponent and the mantissa in the other.
    """
    flat = parts.reshape(-1)
    return sum(_entropy_bits(flat[half::2]) * len(flat[half::2]) for half in (0, 1)) / 8


def _entropy_bits(values: Bytes) -> float:
    share = np.bincount(values, minlength=256) / len(values)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def _padded(pages: Pages) -> Bytes:
    """Return all parts as they lie in a tier, [n, part_stride]."""
    count, layers, part_bytes = pages.parts.shape
    parts = np.zeros((count * layers, PageLayout(layers, part_bytes).part_stride), np.uint8)
    parts[:, :part_bytes] = pages.parts.reshape(-1, part_bytes)
    return parts


def _pass(codec: Codec, parts: Bytes) -> Timing:
    """Encode all, then decode what fits, buffers made and touched before."""
    stored = np.zeros((len(parts), codec.stored_bytes(parts.shape[1])), np.uint8)
    back = np.zeros_like(parts)
    stored[:], back[:] = 1, 1
    began_s = time.monotonic()
    fits = [codec.encode(part, room) is Answer.HIT for part, room in zip(parts, stored, strict=True)]
    between_s = time.monotonic()
    answers = [codec.decode(stored[i], back[i]) for i in np.flatnonzero(fits)]
    ended_s = time.monotonic()
    assert all(answer is Answer.HIT for answer in answers), f"{codec.name} refuses what it stored"
    assert np.array_equal(back[fits], parts[fits]), f"{codec.name} is not lossless"
    return Timing(between_s - began_s, ended_s - between_s, fits.count(False))


def _row(codec: Codec, parts: Bytes, timings: Sequence[Timing]) -> dict[str, Any]:
    raw = timings[-1].raw_parts
    stored = raw * parts.shape[1] + (len(parts) - raw) * codec.stored_bytes(parts.shape[1])
    decoded = (len(parts) - raw) * parts.shape[1]
    return {
        "codec": codec.name,
        "ratio": parts.nbytes / stored,
        "raw_share": raw / len(parts),
        "encode_bytes_per_s": spread([parts.nbytes / one.encode_s for one in timings]),
        "decode_bytes_per_s": spread([decoded / one.decode_s for one in timings]),
    }


def _grid(rows: Sequence[dict[str, Any]]) -> Grid:
    def rate(values: Spread) -> str:
        return f"{values.mid / 1e9:.2f}"

    lines = [
        [
            row["codec"],
            f"{row['ratio']:.3f}",
            f"{100 * row['raw_share']:.1f} %",
            rate(row["encode_bytes_per_s"]),
            rate(row["decode_bytes_per_s"]),
        ]
        for row in rows
    ]
    return Grid(("codec", "ratio", "kept raw", "encode GB/s", "decode GB/s"), lines)


def _notes(figures: Mapping[str, Any]) -> list[str]:
    skipped = [f"{name}: skipped, {why}." for name, why in figures["skipped"].items()]
    return [
        f"{figures['nbytes'] / 1e6:.0f} MB of {figures['source']}, in parts of {figures['part_bytes'] >> 10} KiB, one "
        "thread; rates count decoded bytes, the ratio whole size classes and what is kept raw. The entropy of single "
        f"bytes, high and low half apart, allows a ratio of {figures['entropy_ratio']:.3f}.",
        *skipped,
    ]
