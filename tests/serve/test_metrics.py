"""Metrics: our labels, vLLM's names, the port of their own."""

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve_world import Server

from tokenvm import RequestOutput, SamplingParams
from tokenvm.outputs import CompletionOutput, RequestMetrics
from tokenvm.serve.exporter import as_text, engine_families, server_families, start_exporter
from tokenvm.serve.meter import Meter
from tokenvm.serve.vllm_names import VllmNames

STATS: dict[str, Any] = {
    "tiers": {
        "device": {"hits": 5, "misses": 3, "used_bytes": 25, "capacity_bytes": 100},
        "host": {"hits": 2},
        "disk": {"hits": 1},
    },
    "moved_bytes": {"h2d": 10, "d2h": 20, "nvme_read": 30, "nvme_write": 40},
    "overlap_ratio": 0.75,
    "requests": {"running": 4, "waiting": 3, "paused": 2},
    "prefix_cache": {"asked_tokens": 90, "hit_tokens": {"device": 30, "disk": 15}},
}


def samples(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values in order of their names) → value."""
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def ended(prompt: int, produced: int, latency_s: float) -> tuple[RequestOutput, SamplingParams, int]:
    one = CompletionOutput(0, token_ids=[1] * produced, finish_reason="length")
    times = RequestMetrics(latency_s / 4, latency_s, 2, latency_s / 8)
    return (
        RequestOutput("r", None, [1] * prompt, [one], True, times),
        SamplingParams(max_tokens=produced),
        produced,
    )


def test_an_engines_figures_have_the_promised_labels() -> None:
    found = samples(as_text(engine_families(STATS)).decode())
    assert [found["tokenvm_hits_total", tier] for tier in ("gpu", "host", "nvme")] == [5, 2, 1]
    assert found[("tokenvm_misses_total",)] == 3
    directions = ("h2d", "d2h", "nvme_read", "nvme_write")
    assert [found["tokenvm_bytes_total", name] for name in directions] == [10, 20, 30, 40]
    assert found[("tokenvm_overlap_ratio",)] == 0.75
    assert found["tokenvm_tier_used_bytes", "gpu"] == 25
    assert found["tokenvm_sequences", "paused"] == 2


def test_latency_has_quantiles() -> None:
    meter = Meter()
    for at in range(1, 101):
        meter.end(*ended(3, 2, at / 100))
    found = samples(as_text(server_families(meter, 1, True)).decode())
    assert found["tokenvm_latency_seconds", "0.5"] == 0.51
    assert found["tokenvm_latency_seconds", "0.95"] == 0.96
    assert found["tokenvm_latency_seconds", "0.99"] == 1.0
    assert found[("tokenvm_latency_seconds_count",)] == 100
    assert found[("tokenvm_prompt_tokens_total",)] == 300
    assert found["tokenvm_finished_total", "length"] == 100
    assert found[("tokenvm_engine_restarts_total",)] == 1


def test_vllms_names_hold_the_same_figures() -> None:
    meter = Meter()
    names = VllmNames(meter, "tiny")
    meter.end(*ended(7, 5, 0.8))
    meter.gap(0.02)
    meter.answer("POST", "/v1/completions", 200)
    found = samples(as_text(names.families(STATS)).decode())
    mine = ("0", "tiny")
    assert found["vllm:num_requests_running", *mine] == 4
    assert found["vllm:num_requests_waiting", *mine] == 5
    assert found["vllm:kv_cache_usage_perc", *mine] == 0.25
    assert found["vllm:prompt_tokens_total", *mine] == 7
    assert found["vllm:generation_tokens_total", *mine] == 5
    assert found["vllm:prefix_cache_hits_total", *mine] == 45
    assert found["vllm:request_success_total", "0", "length", "tiny"] == 1
    assert found["vllm:time_to_first_token_seconds_sum", *mine] == pytest.approx(0.2)
    assert found["vllm:request_time_per_output_token_seconds_sum", *mine] == pytest.approx(0.6 / 4)
    assert found["vllm:inter_token_latency_seconds_count", *mine] == 1
    assert found["http_requests_total", "2xx"] == 1


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        yield free.getsockname()[1]


def test_a_busy_port_is_a_warning(port: int, caplog: pytest.LogCaptureFixture) -> None:
    assert not start_exporter(lambda: engine_families(STATS), port)
    assert "--metrics-port" in caplog.text


def test_any_engine_can_be_exported_on_a_port_of_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert start_exporter(lambda: engine_families(STATS), port)
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert samples(text)["tokenvm_hits_total", "nvme"] == 1


def test_a_server_counts_what_it_answers(server: Server) -> None:
    before = samples(server.http.get("/metrics").text)
    server.post("/v1/completions", prompt=[5, 6, 7], max_tokens=4, ignore_eos=True)
    server.post("/v1/completions", prompt=[])
    after = samples(server.http.get("/metrics").text)
    assert after[("tokenvm_prompt_tokens_total",)] - before.get(("tokenvm_prompt_tokens_total",), 0) == 3
    assert after[("tokenvm_produced_tokens_total",)] - before.get(("tokenvm_produced_tokens_total",), 0) == 4
    refused = ("tokenvm_http_answers_total", "POST", "/v1/completions", "4xx")
    assert after[refused] - before.get(refused, 0) == 1
    assert after[("tokenvm_engine_up",)] == 1
