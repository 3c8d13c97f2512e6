"""What the charts show, without drawing them."""

from __future__ import annotations

from typing import Any

import pytest

from tokenvm.bench.charts import Bar, Curve, chart_of
from tokenvm.errors import ConfigError


def test_decode_rises_to_the_right_whatever_order_it_was_measured_in() -> None:
    rows = [{"kv_fraction": f, "p50_ms": 10 / f, "floor_ms": 5 / f} for f in (1.0, 0.1, 0.5)]
    chart = chart_of({"bench": "decode", "context": 8000, "rows": rows})
    assert chart.curves == [
        Curve("measured, median", [10.0, 50.0, 100.0], [100.0, 20.0, 10.0]),
        Curve("floor of memory and disk", [10.0, 50.0, 100.0], [50.0, 10.0, 5.0], dashed=True),
    ]
    assert "8,000" in chart.title


def test_a_stream_curve_begins_at_the_resident_step_and_has_its_spread() -> None:
    points = [{"below": 0.25, "slowdown": [1.0, 1.1, 1.3]}, {"below": 0.5, "slowdown": [1.5, 1.6, 1.7]}]
    line = {"title": "disk, raw", "points": points, "passes": [{"slowdown": 1.3}, {"slowdown": 2.0}]}
    chart = chart_of({"bench": "stream", "context": 8000, "lines": [line]})
    (curve,) = chart.curves
    assert list(curve.x) == [0.0, 25.0, 50.0]
    assert (curve.low, curve.y, curve.high) == ((1.0, 1.0, 1.5), (1.0, 1.1, 1.6), (1.0, 1.3, 1.7))
    assert chart.levels == [1.3, 2.0]


def test_contexts_are_logarithmic() -> None:
    rows = [{"context": 1024, "p50_ms": 20.0, "floor_ms": 15.0}]
    chart = chart_of({"bench": "context", "kv_limit_bytes": 64_000_000, "rows": rows})
    assert chart.logarithmic
    assert "64 MB" in chart.title


def test_bars_have_their_reach() -> None:
    row = {"title": "mmap", "p50_ms": [300.0, 310.0, 400.0]}
    chart = chart_of({"bench": "naive", "kv_limit_bytes": 46_000_000, "rows": [row]})
    assert chart.bars == [Bar("mmap", 310.0, 300.0, 400.0)]
    rows: list[dict[str, Any]] = [
        {"measure": "long_step", "peer": peer, "times_as_fast": [1.5, 2.0, 2.5]}
        for peer in ("tokenvm", "vllm")
    ]
    assert chart_of({"bench": "compare", "rows": rows}).bars == [Bar("long step\nvllm", 2.0, 1.5, 2.5)]


def test_what_has_no_chart_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no chart of 'memory'"):
        chart_of({"bench": "memory"})
