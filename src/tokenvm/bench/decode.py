"""How long a decode step takes when only a share of the KV fits, beside what memory and disk allow."""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from tokenvm.bench.floor import disk_bandwidth, ram_bandwidth
from tokenvm.bench.job import kv_bytes, unlimited, with_memory
from tokenvm.config import MemoryConfig
from tokenvm.engine.engine import Engine
from tokenvm.engine.launch import Settings, build_engine
from tokenvm.errors import ConfigError
from tokenvm.kernels.native import isa, threads
from tokenvm.llm import make_settings
from tokenvm.models.fetch import resolve_model
from tokenvm.models.weights.pack import LoadedModel, load_model
from tokenvm.schedule.request import Request, SamplingParams

_WARM_STEPS = 3

Rates = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sample:
    """One run at one share: seconds of each decode step, what the tiers did, and the machine's rates beside it."""

    rates: Rates
    ttft_s: float
    steps_s: list[float]
    stats: dict[str, Any]
    peak_bytes: int


def measure(
    model: str,
    context: int,
    fractions: list[float],
    *,
    tokens: int,
    rounds: int,
    base: MemoryConfig,
    threads: int | None,
    dtype: str,
) -> dict[str, Any]:
    """Run every share of KV memory in turn, `rounds` times; print a card and return medians as plain values."""
    console = Console(highlight=False)
    loaded = load_model(resolve_model(model), dtype)
    settings = make_settings(base, max_num_seqs=1, threads=threads)
    if context + tokens > loaded.spec.max_model_len:
        raise ConfigError(
            f"--context {context} and --tokens {tokens} exceed the model's {loaded.spec.max_model_len}: "
            f"type --context {loaded.spec.max_model_len - tokens}"
        )
    samples: dict[float, list[Sample]] = {fraction: [] for fraction in fractions}
    for turn in range(rounds):
        for fraction in fractions:
            console.print(f"round {turn + 1} of {rounds}, {100 * fraction:g} % of the KV memory", style="dim")
            samples[fraction].append(_sample(loaded, settings, context, tokens, fraction))
    rows = [_row(loaded, context, fraction, samples[fraction]) for fraction in fractions]
    rates = _median_rates([sample for each in samples.values() for sample in each])
    _print(console, rows, rates)
    return {
        "bench": "decode",
        "model": model,
        "context": context,
        "machine": _machine() | rates,
        "rows": rows,
    }


def threads_in_use(settings: Settings) -> int:
    """Return how many threads the kernels will share a step among."""
    return settings.threads or threads()


def _sample(model: LoadedModel, settings: Settings, context: int, tokens: int, fraction: float) -> Sample:
    _, allowed = kv_bytes(model, settings, context + tokens, fraction)
    limited = with_memory(
        settings, settings.memory.model_copy(update={"kv_limit": allowed, "host_memory": 0})
    )
    engine = build_engine(model, unlimited(settings) if fraction == 1 else limited)
    try:
        return _timed(engine, model.spec.vocab_size, context, tokens, lambda: _rates(settings))
    finally:
        engine.close()


def _rates(settings: Settings) -> Rates:
    return {
        "ram_bytes_per_s": ram_bandwidth(threads_in_use(settings)),
        "disk_bytes_per_s": disk_bandwidth(settings.disk_path),
    }


def _timed(
    engine: Engine, vocab_size: int, context: int, tokens: int, measure_rates: Callable[[], Rates]
) -> Sample:
    """Read the context, then time the steps; the machine is measured right before and right after them."""
    ids = random.Random(0).choices(range(vocab_size), k=context)
    engine.add(
        Request("bench", tuple(ids), SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))
    )
    began_s = time.monotonic()
    while not engine.step().choices:
        pass
    ttft_s = time.monotonic() - began_s
    before = measure_rates()
    steps_s: list[float] = []
    while engine.has_work:
        if len(steps_s) == _WARM_STEPS:
            engine.account.restart()
        began_s = time.monotonic()
        engine.step()
        steps_s.append(time.monotonic() - began_s)
    after, stats = measure_rates(), engine.stats()
    rates = {name: statistics.mean((before[name], after[name])) for name in before}
    peak = stats["tiers"]["device"]["high_water_bytes"] + stats["ring_bytes"] * bool(stats["streamed_pages"])
    return Sample(rates, ttft_s, steps_s[_WARM_STEPS:], stats, peak)


def _median_rates(samples: list[Sample]) -> dict[str, float]:
    return {name: statistics.median(sample.rates[name] for sample in samples) for name in samples[0].rates}


def _streamed(sample: Sample) -> float:
    """Bytes that one token's step reads from below the device."""
    moved = sample.stats["moved_bytes"]
    return float(moved["nvme_read"] + moved["h2d"]) / float(sample.stats["steps"])


def _floor_s(model: LoadedModel, context: int, sample: Sample) -> float:
    """The least a step can take: all weights and KV through memory once, and what is streamed through the disk."""
    held = model.weights.nbytes + model.spec.kv_bytes_per_token(model.weights.dtype) * context
    rates = sample.rates
    return max(held / rates["ram_bytes_per_s"], _streamed(sample) / rates["disk_bytes_per_s"])


def _row(model: LoadedModel, context: int, fraction: float, samples: list[Sample]) -> dict[str, Any]:
    """Medians over the rounds; each round is held against the rates measured beside it."""
    p50s = [statistics.median(sample.steps_s) for sample in samples]
    floors = [_floor_s(model, context, sample) for sample in samples]
    steps_s = sorted(step for sample in samples for step in sample.steps_s)
    hits = {name: tier["hits"] for name, tier in samples[-1].stats["tiers"].items()}
    p50_s = statistics.median(p50s)
    return {
        "kv_fraction": fraction,
        "ttft_s": statistics.median(sample.ttft_s for sample in samples),
        "tokens_per_s": 1 / p50_s,
        "p50_ms": 1000 * p50_s,
        "p95_ms": 1000 * steps_s[int(0.95 * (len(steps_s) - 1))],
        "streamed_bytes_per_token": _streamed(samples[-1]),
        "rates": _median_rates(samples),
        "floor_ms": 1000 * statistics.median(floors),
        "fraction_of_floor": statistics.median(f / p for f, p in zip(floors, p50s, strict=True)),
        "overlap_ratio": statistics.median(sample.stats["overlap_ratio"] for sample in samples),
        "hidden_ratio": statistics.median(sample.stats["hidden_ratio"] for sample in samples),
        "hit_rate": {name: count / max(1, sum(hits.values())) for name, count in hits.items()},
        "peak_bytes": max(sample.peak_bytes for sample in samples),
    }


def _machine() -> dict[str, Any]:
    return {"kernels": isa(), "threads": threads(), "system": platform.platform()}


def _print(console: Console, rows: list[dict[str, Any]], rates: dict[str, float]) -> None:
    table = Table(box=None, padding=(0, 1))
    for name in ("KV", "tok/s", "p50 ms", "p95 ms", "MB/tok", "floor ms", "of floor", "hidden", "TTFT"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{100 * row['kv_fraction']:g} %",
            f"{row['tokens_per_s']:.1f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p95_ms']:.1f}",
            f"{row['streamed_bytes_per_token'] / 1e6:.1f}",
            f"{row['floor_ms']:.1f}",
            f"{row['fraction_of_floor']:.2f}",
            f"{row['hidden_ratio']:.2f}" if row["streamed_bytes_per_token"] else "-",
            f"{row['ttft_s']:.1f} s",
        )
    console.print(table)
    ram, disk = rates["ram_bytes_per_s"] / 1e9, rates["disk_bytes_per_s"] / 1e9
    console.print(
        f"measured beside it: memory {ram:.1f} GB/s, disk {disk:.2f} GB/s ({_machine()['kernels']} kernels)"
    )
