"""Prometheus' text: the engine's counters and the server's, under our names. Works for any engine's `stats()`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from tokenvm.serve.meter import Meter

LOG: Final = logging.getLogger("tokenvm.serve")

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
LOOPBACK: Final = "127.0.0.1"
QUANTILES: Final = (0.5, 0.95, 0.99)
TIERS: Final[Mapping[str, str]] = {"device": "gpu", "host": "host", "disk": "nvme"}
"""A tier in `stats()` → its label. The device keeps its label on a CPU, so that one dashboard fits all machines."""

DIRECTIONS: Final = ("h2d", "d2h", "nvme_read", "nvme_write")

Stats = Mapping[str, Any]
Families = Callable[[], Iterable[Metric]]


def engine_families(stats: Stats) -> Iterator[Metric]:
    """Yield what an engine counts: hits, misses, bytes, overlap, occupancy. Keys that `stats` lacks are left out."""
    tiers = stats.get("tiers", {})
    yield _counter("hits", "Pages read where they lay, by tier.", "tier", _by_tier(tiers, "hits"))
    device = tiers.get("device", {})
    yield CounterMetricFamily("tokenvm_misses", "Pages that were not on the device.", device.get("misses", 0))
    moved = stats.get("moved_bytes", {})
    bytes_moved = {name: moved.get(name, 0) for name in DIRECTIONS}
    yield _counter("bytes", "Bytes moved between tiers.", "dir", bytes_moved)
    for name, meaning in (
        ("overlap_ratio", "Share of copying time in which compute ran too."),
        ("hidden_ratio", "Share of the shorter of copying and compute that ran beside the other."),
    ):
        yield GaugeMetricFamily(f"tokenvm_{name}", meaning, stats.get(name, 0.0))
    for name in ("capacity_bytes", "used_bytes", "high_water_bytes"):
        yield _gauge(f"tier_{name}", f"{name} of a tier.", "tier", _by_tier(tiers, name))
    for name in ("steps", "streamed_pages"):
        yield CounterMetricFamily(f"tokenvm_{name}", f"{name} since the engine's start.", stats.get(name, 0))
    yield _gauge("sequences", "Sequences by state.", "state", stats.get("requests", {}))
    prefixes = stats.get("prefix_cache", {})
    asked = prefixes.get("asked_tokens", 0)
    yield CounterMetricFamily("tokenvm_prefix_asked_tokens", "Prompt tokens that were looked for.", asked)
    found = {TIERS[tier]: count for tier, count in prefixes.get("hit_tokens", {}).items() if tier in TIERS}
    yield _counter("prefix_hit_tokens", "Prompt tokens that were found, by tier.", "tier", found)


def server_families(meter: Meter, restarts: int, up: bool) -> Iterator[Metric]:
    """Yield what a server counts: requests, tokens, times, restarts."""
    latency = Metric("tokenvm_latency_seconds", "Time from a request's arrival to its end.", "summary")
    for quantile in QUANTILES:
        labels = {"quantile": str(quantile)}
        latency.add_sample("tokenvm_latency_seconds", labels, meter.latency_s(quantile))
    latency.add_sample("tokenvm_latency_seconds_count", {}, meter.requests)
    latency.add_sample("tokenvm_latency_seconds_sum", {}, meter.latency_sum_s)
    yield latency
    yield CounterMetricFamily(
        "tokenvm_prompt_tokens", "Prompt tokens of ended requests.", meter.prompt_tokens
    )
    cached = meter.cached_tokens
    yield CounterMetricFamily("tokenvm_cached_tokens", "Prompt tokens that were not computed.", cached)
    produced = meter.produced_tokens
    yield CounterMetricFamily("tokenvm_produced_tokens", "Tokens produced by ended requests.", produced)
    yield _counter("finished", "Completions by how they ended.", "reason", meter.finished)
    answers = CounterMetricFamily(
        "tokenvm_http_answers", "HTTP answers.", labels=["method", "path", "status"]
    )
    for answered, count in sorted(meter.answers.items()):
        answers.add_metric(answered, count)
    yield answers
    yield CounterMetricFamily("tokenvm_engine_restarts", "Engines that died and were replaced.", restarts)
    yield GaugeMetricFamily("tokenvm_engine_up", "1 while an engine stands.", float(up))


def as_text(families: Iterable[Metric]) -> bytes:
    """Return families in Prometheus' text format."""
    listed = list(families)
    return generate_latest(_Gathered(lambda: listed))


def start_exporter(families: Families, port: int) -> bool:
    """Serve `/metrics` on 127.0.0.1 from a thread of its own; return False, with a warning, where the port is taken.

    `families` is called by that thread for every scrape, for example `lambda: engine_families(llm.stats())`.
    """
    registry = CollectorRegistry()
    registry.register(_Gathered(families))
    try:
        start_http_server(port, LOOPBACK, registry)
    except OSError as error:
        LOG.warning(
            "no metrics on %s:%d (%s): choose another --metrics-port, or 0 for none", LOOPBACK, port, error
        )
        return False
    return True


class _Gathered(Collector):
    def __init__(self, families: Families) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._families()


def _by_tier(tiers: Mapping[str, Any], name: str) -> dict[str, float]:
    return {label: tiers.get(tier, {}).get(name, 0) for tier, label in TIERS.items()}


def _counter(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    return labelled(CounterMetricFamily(f"tokenvm_{name}", meaning, labels=[label]), values)


def _gauge(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    return labelled(GaugeMetricFamily(f"tokenvm_{name}", meaning, labels=[label]), values)


def labelled(family: Any, values: Mapping[str, float]) -> Metric:
    """Return a family of one label with these values."""
    for value, count in values.items():
        family.add_metric([value], count)
    found: Metric = family
    return found
