"""How small real KV becomes under lossless codecs, and how fast. One pays if it decodes faster than the disk reads."""

from __future__ import annotations

import importlib
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from tokenvm.bench.figures import Spread, spread
from tokenvm.bench.report import Grid, Report
from tokenvm.bench.seed import Pages

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Coder:
    """A codec under test: both functions take and return whole parts, on one thread."""

    name: str
    encode: Callable[[Bytes], Any]
    decode: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """One pass over all parts: seconds to encode and to decode them, and the bytes between."""

    encode_s: float
    decode_s: float
    encoded_bytes: int


def measure(
    pages: Pages,
    source: str,
    coders: Sequence[Coder],
    skipped: Mapping[str, str],
    rounds: int,
    console: Console,
) -> Report:
    """Put every part of `pages` through every codec in turn, `rounds` times; what comes back must be what went in."""
    parts = list(pages.parts.reshape(-1, pages.parts.shape[-1]))
    samples: dict[str, list[Timing]] = {coder.name: [] for coder in coders}
    for turn in range(rounds):
        for coder in coders:
            console.print(f"round {turn + 1} of {rounds}, {coder.name}", style="dim")
            samples[coder.name].append(_pass(coder, parts))
    rows = [_row(name, pages.nbytes, timings) for name, timings in samples.items()]
    ideal = pages.nbytes / entropy_bytes(pages.parts)
    figures = {
        "bench": "codec",
        "source": source,
        "nbytes": pages.nbytes,
        "part_bytes": pages.parts.shape[-1],
        "entropy_ratio": ideal,
        "rows": rows,
        "skipped": dict(skipped),
    }
    return Report("codec", figures, [_grid(rows)], _notes(figures))


def known_coders() -> tuple[list[Coder], dict[str, str]]:
    """Return the codecs that can be measured here, and why others cannot."""
    found = [
        Coder("none (a copy)", np.copy, np.copy),
        Coder("zlib, level 1", lambda part: zlib.compress(part.tobytes(), 1), zlib.decompress),
    ]
    skipped: dict[str, str] = {}
    for package, make in _OPTIONAL.items():
        try:
            found.append(make(importlib.import_module(package)))
        except ImportError:
            skipped[package] = f"the package {package} is not installed"
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


def _lz4(module: Any) -> Coder:
    block = importlib.import_module("lz4.block")
    return Coder(f"lz4 {module.__version__}", block.compress, block.decompress)


def _zstd(module: Any) -> Coder:
    packer, unpacker = module.ZstdCompressor(level=1), module.ZstdDecompressor()
    return Coder(f"zstd {module.__version__}, level 1", packer.compress, unpacker.decompress)


_OPTIONAL: Final[Mapping[str, Callable[[Any], Coder]]] = {"lz4": _lz4, "zstandard": _zstd}


def _pass(coder: Coder, parts: Sequence[Bytes]) -> Timing:
    began_s = time.monotonic()
    encoded = [coder.encode(part) for part in parts]
    between_s = time.monotonic()
    decoded = [coder.decode(part) for part in encoded]
    ended_s = time.monotonic()
    for before, after in zip(parts, decoded, strict=True):
        assert np.array_equal(before, np.frombuffer(after, np.uint8)), f"{coder.name} is not lossless"
    size = sum(len(memoryview(part).cast("B")) for part in encoded)
    return Timing(between_s - began_s, ended_s - between_s, size)


def _row(name: str, nbytes: int, timings: Sequence[Timing]) -> dict[str, Any]:
    return {
        "codec": name,
        "ratio": nbytes / timings[-1].encoded_bytes,
        "encode_bytes_per_s": spread([nbytes / one.encode_s for one in timings]),
        "decode_bytes_per_s": spread([nbytes / one.decode_s for one in timings]),
    }


def _grid(rows: Sequence[dict[str, Any]]) -> Grid:
    def rate(values: Spread) -> str:
        return f"{values.mid / 1e9:.2f}"

    lines = [
        [
            row["codec"],
            f"{row['ratio']:.3f}",
            rate(row["encode_bytes_per_s"]),
            rate(row["decode_bytes_per_s"]),
        ]
        for row in rows
    ]
    return Grid(("codec", "ratio", "encode GB/s", "decode GB/s"), lines)


def _notes(figures: Mapping[str, Any]) -> list[str]:
    skipped = [f"{name}: skipped, {why}." for name, why in figures["skipped"].items()]
    return [
        f"{figures['nbytes'] / 1e6:.0f} MB of {figures['source']}, in parts of {figures['part_bytes'] >> 10} KiB, one "
        "thread; rates count decoded bytes. The entropy of single bytes, high and low half apart, allows a ratio of "
        f"{figures['entropy_ratio']:.3f}.",
        *skipped,
    ]
