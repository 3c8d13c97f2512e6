"""How fast memory is read and copied: the bandwidth under every decode step."""

from __future__ import annotations

import os
import time
from typing import Any, Final

from rich.console import Console

from tokenvm.bench.figures import Spread, spread
from tokenvm.bench.floor import advise_huge, using_threads
from tokenvm.bench.report import Grid, Report
from tokenvm.kernels.paging import copy, fill
from tokenvm.kernels.peak import read_all
from tokenvm.machine import usable_cores
from tokenvm.memory.cpu import AnonymousRegion

_SIZES: Final = ("4 KiB", "huge")
"""Of the system's pages."""


def measure(nbytes: int, rounds: int, console: Console) -> Report:
    """Read and copy `nbytes` on one core and on all, in small and in huge pages of the system, in turn."""
    counts = sorted({1, usable_cores()})
    regions = {name: _region(nbytes, name == "huge") for name in _SIZES}
    samples: dict[tuple[str, str, int], list[float]] = {}
    for turn in range(rounds):
        console.print(f"round {turn + 1} of {rounds}", style="dim")
        for name, region in regions.items():
            for count in counts:
                samples.setdefault(("read", name, count), []).append(_read_rate(region, count))
            samples.setdefault(("copy", name, 1), []).append(_copy_rate(region))
    huge = {name: _huge_bytes(region.address) for name, region in regions.items()}
    for region in regions.values():
        region.close()
    rows = [
        {
            "what": what,
            "pages": name,
            "threads": count,
            "bytes_per_s": spread(rates),
            "huge_bytes": huge[name],
        }
        for (what, name, count), rates in samples.items()
    ]
    return Report("memory", {"bench": "memory", "nbytes": nbytes, "rows": rows}, [_grid(rows)], [_note(rows)])


def _region(nbytes: int, huge: bool) -> AnonymousRegion:
    region = AnonymousRegion(nbytes)
    advise_huge(region.address, nbytes, huge)
    fill(region.address, nbytes, 1)
    return region


def _read_rate(region: AnonymousRegion, count: int) -> float:
    with using_threads(count):
        began_s = time.monotonic()
        read_all(region.address, region.nbytes)
        return region.nbytes / (time.monotonic() - began_s)


def _copy_rate(region: AnonymousRegion) -> float:
    half = region.nbytes // 2
    began_s = time.monotonic()
    copy(region.address + half, region.address, half)
    return half / (time.monotonic() - began_s)


def _huge_bytes(address: int) -> int:
    """Return how many bytes of the mapping at an address lie in huge pages, as the kernel counts them."""
    found = False
    with open(f"/proc/{os.getpid()}/smaps", encoding="utf-8") as lines:
        for line in lines:
            first, *rest = line.split()
            if "-" in first and not first.endswith(":"):
                begin, end = (int(part, 16) for part in first.split("-"))
                found = begin <= address < end
            elif found and first == "AnonHugePages:":
                return int(rest[0]) * 1024
    return 0


def _grid(rows: list[dict[str, Any]]) -> Grid:
    def cells(row: dict[str, Any]) -> list[str]:
        rate = Spread(*row["bytes_per_s"])
        return [
            f"{row['what']}, {row['pages']} pages",
            str(row["threads"]),
            f"{rate.mid / 1e9:.1f}",
            f"{rate.low / 1e9:.1f} to {rate.high / 1e9:.1f}",
        ]

    return Grid(("what", "threads", "GB/s", "from to"), [cells(row) for row in rows])


def _note(rows: list[dict[str, Any]]) -> str:
    huge = next(row["huge_bytes"] for row in rows if row["pages"] == "huge")
    if not huge:
        return "The system gave no huge pages: both rows are of 4 KiB pages."
    return f"{huge >> 20} MiB of the buffer lay in huge pages. A copy of n bytes reads n and writes n; n counts once."
