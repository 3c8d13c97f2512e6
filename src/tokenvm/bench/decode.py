"""How long a decode step takes when only a share of the KV fits, beside what memory and disk allow."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from tokenvm.bench.figures import percentile, seen_tokens, step_bytes
from tokenvm.bench.floor import Probe, Rates, better_rates, median_rates, probing
from tokenvm.bench.report import Grid, Report, machine
from tokenvm.bench.subject import Paging, Subject, decode_steps, read_prompt, request, streamed_bytes
from tokenvm.engine.launch import needs_of


@dataclass(frozen=True, slots=True)
class Sample:
    """One run at one share: seconds of each decode step, what the tiers did, and the machine's rates beside it."""

    rates: Rates
    ttft_s: float
    steps_s: list[float]
    stats: dict[str, Any]
    peak_bytes: int


def measure(
    subject: Subject, context: int, fractions: list[float], tokens: int, rounds: int, console: Console
) -> Report:
    """Run every share of KV memory in turn, `rounds` times, and report medians."""
    subject.check_fits(context, tokens)
    samples: dict[float, list[Sample]] = {fraction: [] for fraction in fractions}
    with probing(subject.settings.disk_path, subject.threads) as probe:
        for turn in range(rounds):
            for fraction in fractions:
                console.print(
                    f"round {turn + 1} of {rounds}, {100 * fraction:g} % of the KV memory", style="dim"
                )
                samples[fraction].append(_sample(subject, probe, context, tokens, fraction))
    rows = [_row(subject, context, fraction, samples[fraction]) for fraction in fractions]
    rates = median_rates([sample.rates for each in samples.values() for sample in each])
    figures = {
        "bench": "decode",
        "model": subject.name,
        "context": context,
        "machine": machine() | {"threads": subject.threads} | rates,
        "rows": rows,
    }
    return Report("decode", figures, [_grid(rows)], [rates_note(rates)])


def _sample(subject: Subject, probe: Probe, context: int, tokens: int, fraction: float) -> Sample:
    """Read the context, then time the steps; the machine is measured right before and right after them."""
    with subject.turn(), subject.engine(Paging(fraction), context + tokens) as engine:
        engine.add(request(subject.ids(context), tokens))
        ttft_s = read_prompt(engine)
        before = probe.rates()
        steps_s = decode_steps(engine)
        rates, stats = better_rates(before, probe.rates()), engine.stats()
    peak = stats["tiers"]["device"]["high_water_bytes"] + stats["ring_bytes"] * bool(stats["streamed_pages"])
    return Sample(rates, ttft_s, steps_s, stats, peak)


def floor_s(subject: Subject, context: int, streamed: float, rates: Rates) -> float:
    """Return the least a step can take.

    Weights and what a row sees of KV go through memory once, and what is streamed through the disk.
    """
    _, geometry = needs_of(subject.model, subject.settings)
    token_bytes = geometry.part_bytes // geometry.block_tokens
    held = step_bytes(subject.model.weights.nbytes, token_bytes, seen_tokens(subject.model.spec, context))
    return max(held / rates["ram_bytes_per_s"], streamed / rates["disk_bytes_per_s"])


def _row(subject: Subject, context: int, fraction: float, samples: list[Sample]) -> dict[str, Any]:
    """Medians over the rounds; each round is held against the rates measured beside it."""
    p50s = [statistics.median(sample.steps_s) for sample in samples]
    floors = [floor_s(subject, context, streamed_bytes(sample.stats), sample.rates) for sample in samples]
    hits = {name: tier["hits"] for name, tier in samples[-1].stats["tiers"].items()}
    p50_s = statistics.median(p50s)
    return {
        "kv_fraction": fraction,
        "ttft_s": statistics.median(sample.ttft_s for sample in samples),
        "tokens_per_s": 1 / p50_s,
        "p50_ms": 1000 * p50_s,
        "p95_ms": 1000 * percentile([step for sample in samples for step in sample.steps_s], 0.95),
        "streamed_bytes_per_token": streamed_bytes(samples[-1].stats),
        "rates": median_rates([sample.rates for sample in samples]),
        "floor_ms": 1000 * statistics.median(floors),
        "fraction_of_floor": statistics.median(f / p for f, p in zip(floors, p50s, strict=True)),
        "overlap_ratio": statistics.median(sample.stats["overlap_ratio"] for sample in samples),
        "hidden_ratio": statistics.median(sample.stats["hidden_ratio"] for sample in samples),
        "hit_rate": {name: count / max(1, sum(hits.values())) for name, count in hits.items()},
        "peak_bytes": max(sample.peak_bytes for sample in samples),
    }


def _grid(rows: list[dict[str, Any]]) -> Grid:
    def cells(row: dict[str, Any]) -> list[str]:
        return [
            f"{100 * row['kv_fraction']:g} %",
            f"{row['tokens_per_s']:.1f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p95_ms']:.1f}",
            f"{row['streamed_bytes_per_token'] / 1e6:.1f}",
            f"{row['floor_ms']:.1f}",
            f"{row['fraction_of_floor']:.2f}",
            f"{row['hidden_ratio']:.2f}" if row["streamed_bytes_per_token"] else "-",
            f"{row['ttft_s']:.1f} s",
        ]

    names = ("KV", "tok/s", "p50 ms", "p95 ms", "MB/tok", "floor ms", "of floor", "hidden", "TTFT")
    return Grid(names, [cells(row) for row in rows])


def rates_note(rates: Rates) -> str:
    """Return a line that says how fast memory and disk were meanwhile."""
    ram, disk = rates["ram_bytes_per_s"] / 1e9, rates["disk_bytes_per_s"] / 1e9
    return f"Measured beside it: memory {ram:.1f} GB/s, disk {disk:.2f} GB/s."
