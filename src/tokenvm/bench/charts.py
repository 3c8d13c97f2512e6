"""What the charts of the documentation show, as numbers: from the figures that a report leaves beside the document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tokenvm.errors import ConfigError

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Curve:
    """Points under one title; `low` and `high` bound each where it was measured more than once."""

    title: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, and how far its value was seen to reach."""

    title: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves or bars (never both) with words around them."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve] = ()
    bars: Sequence[Bar] = ()
    logarithmic: bool = False
    levels: Sequence[float] = ()


def decode_chart(figures: Figures) -> Chart:
    """Milliseconds a token over the share of KV memory, beside the floor."""
    rows = sorted(figures["rows"], key=lambda row: row["kv_fraction"])
    x = [100 * row["kv_fraction"] for row in rows]
    measured = Curve("measured, median", x, [row["p50_ms"] for row in rows])
    floor = Curve("floor of memory and disk", x, [row["floor_ms"] for row in rows], dashed=True)
    title = f"A decode step at {figures['context']:,} tokens of context"
    return Chart(title, "KV memory, % of what is needed", "ms a token", [measured, floor])


def stream_chart(figures: Figures) -> Chart:
    """Slowdown over the share of KV below the device, a curve for each way to keep it there."""
    curves = []
    for line in figures["lines"]:
        points = line["points"]
        x = [0.0, *(100 * point["below"] for point in points)]
        low, mid, high = zip((1.0, 1.0, 1.0), *(point["slowdown"] for point in points), strict=True)
        curves.append(Curve(line["title"], x, mid, low, high))
    title = f"KV below the device, {figures['context']:,} tokens of context"
    levels = [one["slowdown"] for one in figures["lines"][0]["passes"]]
    return Chart(title, "share below, %", "times a resident step", curves, levels=levels)


def context_chart(figures: Figures) -> Chart:
    """Milliseconds a token over the context, under a fixed limit."""
    rows = figures["rows"]
    x = [row["context"] for row in rows]
    measured = Curve("measured, median", x, [row["p50_ms"] for row in rows])
    floor = Curve("floor of memory and disk", x, [row["floor_ms"] for row in rows], dashed=True)
    limit = figures["kv_limit_bytes"] / 1e6
    title = f"A decode step with {limit:.0f} MB of KV memory"
    return Chart(title, "tokens of context", "ms a token", [measured, floor], logarithmic=True)


def naive_chart(figures: Figures) -> Chart:
    """Milliseconds a token of each way to page."""
    bars = [
        Bar(row["title"], row["p50_ms"][1], row["p50_ms"][0], row["p50_ms"][2]) for row in figures["rows"]
    ]
    limit = figures["kv_limit_bytes"] / 1e6
    return Chart(f"A decode step, paged with {limit:.0f} MB of KV memory", "", "ms a token", bars=bars)


def compare_chart(figures: Figures) -> Chart:
    """How many times as fast TokenVM was, a bar for each peer and measure."""
    bars = [
        Bar(f"{row['measure'].replace('_', ' ')}\n{row['peer']}", ratio[1], ratio[0], ratio[2])
        for row in figures["rows"]
        if row["peer"] != "tokenvm"
        for ratio in (row["times_as_fast"],)
    ]
    return Chart("TokenVM against its peers, all KV in memory", "", "times as fast", bars=bars, levels=[1.0])


CHARTS: Final[Mapping[str, Callable[[Figures], Chart]]] = {
    "decode": decode_chart,
    "stream": stream_chart,
    "context": context_chart,
    "naive": naive_chart,
    "compare": compare_chart,
}
"""Name of a measurement → its chart."""


def chart_of(figures: Figures) -> Chart:
    """Return the chart of a measurement's figures; ConfigError where it has none."""
    name = figures.get("bench", "")
    if name not in CHARTS:
        raise ConfigError(f"there is no chart of {name!r}: there are {', '.join(CHARTS)}")
    return CHARTS[name](figures)
