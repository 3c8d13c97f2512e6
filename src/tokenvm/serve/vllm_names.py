"""The same figures under the names that vLLM's dashboards read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tokenvm.outputs import RequestOutput
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.serve.exporter import Stats, labelled
from tokenvm.serve.meter import Meter

LABELS: Final = ("model_name", "engine")
_TTFT: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
                20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
_BETWEEN: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
                   20.0, 40.0, 80.0)  # fmt: skip
_WHOLE: Final = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
                 240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
_COUNTS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_FEW: Final = (1, 2, 5, 10, 20)

_HISTOGRAMS: Final = (
    ("time_to_first_token_seconds", _TTFT),
    ("inter_token_latency_seconds", _BETWEEN),
    ("request_time_per_output_token_seconds", _BETWEEN),
    ("e2e_request_latency_seconds", _WHOLE),
    ("request_queue_time_seconds", _WHOLE),
    ("request_inference_time_seconds", _WHOLE),
    ("request_prefill_time_seconds", _WHOLE),
    ("request_decode_time_seconds", _WHOLE),
    ("request_prompt_tokens", _COUNTS),
    ("request_generation_tokens", _COUNTS),
    ("request_max_num_generation_tokens", _COUNTS),
    ("request_params_max_tokens", _COUNTS),
    ("request_params_n", _FEW),
)


class VllmNames:
    """Histograms over ended requests, fed by a Meter, and the gauges and counters beside them."""

    def __init__(self, meter: Meter, model: str) -> None:
        self._meter = meter
        self._labels = [model, "0"]
        self._registry = CollectorRegistry()
        self._histograms: dict[str, Any] = {
            name: Histogram(f"vllm:{name}", name, LABELS, registry=self._registry, buckets=buckets).labels(
                *self._labels
            )
            for name, buckets in _HISTOGRAMS
        }
        meter.hear.append(self._end)
        meter.hear_gap.append(self._histograms["inter_token_latency_seconds"].observe)

    def families(self, stats: Stats) -> Iterator[Metric]:
        """Yield all of them; `stats` are the engine's."""
        yield from self._registry.collect()
        requests = stats.get("requests", {})
        waiting = requests.get("waiting", 0)
        yield self._gauge("num_requests_running", requests.get("running", 0))
        yield self._gauge("num_requests_waiting", waiting + requests.get("paused", 0))
        reasons = {"capacity": waiting, "deferred": requests.get("paused", 0)}
        yield self._split(GaugeMetricFamily, "num_requests_waiting_by_reason", "reason", reasons)
        device = stats.get("tiers", {}).get("device", {})
        used, capacity = device.get("used_bytes", 0), device.get("capacity_bytes", 0)
        yield self._gauge("kv_cache_usage_perc", used / capacity if capacity else 0.0)
        prefixes = stats.get("prefix_cache", {})
        found = sum(prefixes.get("hit_tokens", {}).values())
        for name, count in (
            ("prompt_tokens", self._meter.prompt_tokens),
            ("prompt_tokens_cached", self._meter.cached_tokens),
            ("generation_tokens", self._meter.produced_tokens),
            ("prefix_cache_queries", prefixes.get("asked_tokens", 0)),
            ("prefix_cache_hits", found),
        ):
            yield self._split(CounterMetricFamily, name, "", {"": count})
        yield self._split(CounterMetricFamily, "request_success", "finished_reason", self._meter.finished)
        statuses: dict[str, float] = {}
        for (_, _, status), count in self._meter.answers.items():
            statuses[status] = statuses.get(status, 0) + count
        yield labelled(CounterMetricFamily("http_requests", "HTTP answers.", labels=["status"]), statuses)

    def _end(self, output: RequestOutput, params: SamplingParams, produced: int) -> None:
        times = output.metrics
        assert times is not None, "it has finished"
        decoding_s = times.latency_s - times.ttft_s
        most = max(1, produced // max(1, params.n))
        seen: dict[str, float] = {
            "time_to_first_token_seconds": times.ttft_s,
            "e2e_request_latency_seconds": times.latency_s,
            "request_queue_time_seconds": times.queue_s,
            "request_inference_time_seconds": times.latency_s - times.queue_s,
            "request_prefill_time_seconds": times.ttft_s - times.queue_s,
            "request_decode_time_seconds": decoding_s,
            "request_prompt_tokens": len(output.prompt_token_ids),
            "request_generation_tokens": produced,
            "request_max_num_generation_tokens": most,
            "request_params_n": params.n,
        }
        if params.max_tokens is not None:
            seen["request_params_max_tokens"] = params.max_tokens
        if most > 1:
            seen["request_time_per_output_token_seconds"] = decoding_s / (most - 1)
        for name, value in seen.items():
            self._histograms[name].observe(value)

    def _gauge(self, name: str, value: float) -> Metric:
        return self._split(GaugeMetricFamily, name, "", {"": value})

    def _split(self, kind: Any, name: str, label: str, values: dict[str, Any]) -> Metric:
        family = kind(f"vllm:{name}", name, labels=[*LABELS, *([label] if label else [])])
        for value, count in values.items():
            family.add_metric([*self._labels, *([value] if label else [])], count)
        found: Metric = family
        return found
