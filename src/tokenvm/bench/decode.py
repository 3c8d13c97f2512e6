"""How long a decode step takes when only a share of the KV fits, beside what memory and disk allow."""

from __future__ import annotations

import platform
import random
import statistics
import time
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


@dataclass(frozen=True, slots=True)
class Sample:
    """One run at one share: seconds of each decode step, and what the tiers did meanwhile."""

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
    machine: dict[str, list[float]] = {"ram_bytes_per_s": [], "disk_bytes_per_s": []}
    for turn in range(rounds):
        for fraction in fractions:
            console.print(f"round {turn + 1} of {rounds}, {100 * fraction:g} % of the KV memory", style="dim")
            machine["ram_bytes_per_s"].append(ram_bandwidth(threads_in_use(settings)))
            machine["disk_bytes_per_s"].append(disk_bandwidth(settings.disk_path))
            samples[fraction].append(_sample(loaded, settings, context, tokens, fraction))
    rates = {name: max(values) for name, values in machine.items()}
    rows = [_row(loaded, context, fraction, samples[fraction], rates) for fraction in fractions]
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
        return _timed(engine, model.spec.vocab_size, context, tokens)
    finally:
        engine.close()


def _timed(engine: Engine, vocab_size: int, context: int, tokens: int) -> Sample:
    ids = random.Random(0).choices(range(vocab_size), k=context)
    engine.add(
        Request("bench", tuple(ids), SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))
    )
    began_s = time.monotonic()
    while not engine.step().choices:
        pass
    ttft_s = time.monotonic() - began_s
    steps_s: list[float] = []
    while engine.has_work:
        if len(steps_s) == _WARM_STEPS:
            engine.account.restart()
        began_s = time.monotonic()
        engine.step()
        steps_s.append(time.monotonic() - began_s)
    stats = engine.stats()
    peak = stats["tiers"]["device"]["high_water_bytes"] + stats["ring_bytes"] * bool(stats["streamed_pages"])
    return Sample(ttft_s, steps_s[_WARM_STEPS:], stats, peak)


def _row(
    model: LoadedModel, context: int, fraction: float, samples: list[Sample], rates: dict[str, float]
) -> dict[str, Any]:
    steps_s = sorted(step for sample in samples for step in sample.steps_s)
    p50_s = statistics.median(steps_s)
    stats = samples[-1].stats
    streamed = sum(stats["moved_bytes"][name] for name in ("nvme_read", "h2d")) / stats["steps"]
    held = model.weights.nbytes + model.spec.kv_bytes_per_token(model.weights.dtype) * context
    floor_s = max(held / rates["ram_bytes_per_s"], streamed / rates["disk_bytes_per_s"])
    hits = {name: tier["hits"] for name, tier in stats["tiers"].items()}
    return {
        "kv_fraction": fraction,
        "ttft_s": statistics.median(sample.ttft_s for sample in samples),
        "tokens_per_s": 1 / p50_s,
        "p50_ms": 1000 * p50_s,
        "p95_ms": 1000 * steps_s[int(0.95 * (len(steps_s) - 1))],
        "streamed_bytes_per_token": streamed,
        "floor_ms": 1000 * floor_s,
        "fraction_of_floor": floor_s / p50_s,
        "overlap_ratio": statistics.median(sample.stats["overlap_ratio"] for sample in samples),
        "hidden_ratio": statistics.median(sample.stats["hidden_ratio"] for sample in samples),
        "hit_rate": {name: count / max(1, sum(hits.values())) for name, count in hits.items()},
        "peak_bytes": max(sample.peak_bytes for sample in samples),
    }


def _machine() -> dict[str, Any]:
    return {"kernels": isa(), "threads": threads(), "system": platform.platform()}


def _print(console: Console, rows: list[dict[str, Any]], rates: dict[str, float]) -> None:
    table = Table(box=None, padding=(0, 2))
    for name in (
        "KV memory",
        "tok/s",
        "p50 ms",
        "p95 ms",
        "MB/token",
        "floor ms",
        "of floor",
        "hidden",
        "first token",
    ):
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
