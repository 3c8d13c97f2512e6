"""What it costs to keep a share of the KV below the device: on disk, through each codec, or over a link."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from tokenvm.bench.decode import floor_s, rates_note
from tokenvm.bench.figures import Spread, crossing, paired_ratios, percentile, spread
from tokenvm.bench.floor import Probe, Rates, better_rates, median_rates, probing
from tokenvm.bench.report import Grid, Report, machine
from tokenvm.bench.seed import Pages, add_seeded
from tokenvm.bench.subject import (
    Paging,
    Subject,
    decode_steps,
    known_codecs,
    read_prompt,
    request,
    streamed_bytes,
)
from tokenvm.errors import ConfigError
from tokenvm.sizes import format_size, parse_size

LEVELS = (1.3, 2.0)
"""Slowdowns whose share of KV below the device is looked for."""


@dataclass(frozen=True, slots=True)
class Line:
    """One way to keep KV below the device."""

    codec: str = "none"
    link_bytes_per_s: float | None = None

    @property
    def title(self) -> str:
        """What it is called in tables and charts."""
        if self.link_bytes_per_s is not None:
            return f"host, emulated {format_size(int(self.link_bytes_per_s))}/s link"
        return "disk, raw" if self.codec == "none" else f"disk, {self.codec}"

    def paging(self, fraction: float) -> Paging:
        """Return where KV lies when `fraction` of it may be on the device."""
        if self.link_bytes_per_s is None:
            return Paging(fraction, self.codec)
        return Paging(fraction, below="host", link_bytes_per_s=self.link_bytes_per_s)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: seconds of each step, bytes each of them read from below, the least a step could take."""

    steps_s: list[float]
    streamed_bytes: float
    floor_s: float
    rates: Rates
    stats: dict[str, Any]

    @property
    def p50_s(self) -> float:
        """The median step."""
        return statistics.median(self.steps_s)


Samples = dict[tuple[Line, float], list[Sample]]


def measure(
    subject: Subject,
    pages: Pages,
    context: int,
    fractions: Sequence[float],
    lines: Sequence[Line],
    tokens: int,
    rounds: int,
    console: Console,
) -> Report:
    """Run every line at every share in turn, `rounds` times, each round beside one with all KV on the device."""
    subject.check_fits(context, tokens)
    samples: Samples = {}
    with probing(subject.settings.disk_path, subject.threads) as probe:
        for turn in range(rounds):
            for line, fraction in _runs(lines, fractions):
                console.print(
                    f"round {turn + 1} of {rounds}, {line.title}, {100 * (1 - fraction):g} % below",
                    style="dim",
                )
                sample = _sample(subject, probe, pages, context, tokens, line.paging(fraction))
                samples.setdefault((line, fraction), []).append(sample)
    base = samples[lines[0], 1.0]
    curves = [_curve(line, fractions, samples, base) for line in lines]
    rates = median_rates([sample.rates for each in samples.values() for sample in each])
    figures = {
        "bench": "stream",
        "model": subject.name,
        "context": context,
        "resident_ms": 1000 * statistics.median(sample.p50_s for sample in base),
        "machine": machine() | {"threads": subject.threads} | rates,
        "lines": curves,
    }
    return Report("stream", figures, [_grid(curves), _levels(curves)], _notes(figures, rates))


def _runs(lines: Sequence[Line], fractions: Sequence[float]) -> list[tuple[Line, float]]:
    limited = [(line, fraction) for fraction in fractions if fraction < 1 for line in lines]
    return [(lines[0], 1.0), *limited]


def _sample(
    subject: Subject, probe: Probe, pages: Pages, context: int, tokens: int, paging: Paging
) -> Sample:
    with subject.turn(), subject.engine(paging, context + tokens) as engine:
        add_seeded(engine, request(subject.ids(context), tokens), pages)
        read_prompt(engine)
        before = probe.rates()
        steps_s = decode_steps(engine)
        rates, stats = better_rates(before, probe.rates()), engine.stats()
    if paging.link_bytes_per_s is not None:  # what is streamed crosses the link, not the disk
        rates = rates | {"disk_bytes_per_s": paging.link_bytes_per_s}
    streamed = streamed_bytes(stats)
    return Sample(steps_s, streamed, floor_s(subject, context, streamed, rates), rates, stats)


def _curve(line: Line, fractions: Sequence[float], samples: Samples, base: list[Sample]) -> dict[str, Any]:
    points = [_point(1 - f, samples[line, f], base) for f in sorted(fractions, reverse=True) if f < 1]
    curve = [(0.0, 1.0), *((p["below"], p["slowdown"][1]) for p in points)]
    found = {level: crossing(curve, level) for level in LEVELS}
    return {
        "title": line.title,
        "codec": line.codec,
        "emulated_link_bytes_per_s": line.link_bytes_per_s,
        "points": points,
        "passes": [{"slowdown": level, "passed": at.passed, "below": at.at} for level, at in found.items()],
    }


def _point(below: float, mine: list[Sample], base: list[Sample]) -> dict[str, Any]:
    return {
        "below": below,
        "p50_ms": spread([1000 * sample.p50_s for sample in mine]),
        "p95_ms": 1000 * percentile([step for sample in mine for step in sample.steps_s], 0.95),
        "slowdown": paired_ratios([sample.p50_s for sample in mine], [sample.p50_s for sample in base]),
        "streamed_bytes_per_token": mine[-1].streamed_bytes,
        "floor_ms": 1000 * statistics.median(sample.floor_s for sample in mine),
        "fraction_of_floor": statistics.median(sample.floor_s / sample.p50_s for sample in mine),
        "hidden_ratio": statistics.median(sample.stats["hidden_ratio"] for sample in mine),
    }


def _grid(curves: list[dict[str, Any]]) -> Grid:
    def cells(title: str, point: dict[str, Any]) -> list[str]:
        slowdown = Spread(*point["slowdown"])
        return [
            title,
            f"{100 * point['below']:.0f} %",
            f"{point['p50_ms'][1]:.1f}",
            f"{point['p95_ms']:.1f}",
            f"{slowdown.mid:.2f}",
            f"{slowdown.low:.2f} to {slowdown.high:.2f}",
            f"{point['streamed_bytes_per_token'] / 1e6:.1f}",
            f"{point['floor_ms']:.1f}",
            f"{point['fraction_of_floor']:.2f}",
            f"{point['hidden_ratio']:.2f}",
        ]

    names = ("KV below the device", "share", "p50 ms", "p95 ms", "slowdown", "from to", "MB/tok", "floor ms",
             "of floor", "hidden")  # fmt: skip
    return Grid(names, [cells(curve["title"], point) for curve in curves for point in curve["points"]])


def _levels(curves: list[dict[str, Any]]) -> Grid:
    def share(found: dict[str, Any]) -> str:
        below = f"{100 * found['below']:.0f} %"
        return below if found["passed"] else f"not up to {below}"

    names = ("share at which it passes", *(f"{level:g} x" for level in LEVELS))
    return Grid(names, [[curve["title"], *map(share, curve["passes"])] for curve in curves])


def _notes(figures: dict[str, Any], rates: Rates) -> list[str]:
    return [
        f"{figures['context']:,} tokens of context; a step with all KV on the device took "
        f"{figures['resident_ms']:.1f} ms. Slowdowns are of each round by itself. Over the emulated link bytes really "
        "are copied, by the processor, and wait for as long as the link would have taken.",
        rates_note(rates),
    ]


def lines_of(codecs: str, link_bandwidth: str | None) -> list[Line]:
    """Read what the command line asks for. Raises ConfigError for a codec or a bandwidth that does not exist."""
    known = known_codecs()
    chosen = known if codecs == "auto" else codecs.split(",")
    for codec in chosen:
        if codec not in known:
            raise ConfigError(f'--codecs names "{codec}", which does not exist: use {", ".join(known)}')
    lines = [Line(codec) for codec in chosen]
    if link_bandwidth is not None:
        rate = parse_size(link_bandwidth.removesuffix("/s"), "link_bandwidth")
        if not rate:
            raise ConfigError('--link-bandwidth 0 moves nothing: type --link-bandwidth "8GB/s"')
        lines.append(Line(link_bytes_per_s=float(rate)))
    return lines
