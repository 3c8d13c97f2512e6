"""How a decode step grows with the context when the KV memory does not."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from tokenvm.bench.decode import floor_s, rates_note
from tokenvm.bench.figures import percentile
from tokenvm.bench.floor import Probe, better_rates, median_rates, probing
from tokenvm.bench.report import Grid, Report, machine
from tokenvm.bench.seed import Pages, add_seeded
from tokenvm.bench.subject import (
    WARM_STEPS,
    Paging,
    Subject,
    decode_steps,
    read_prompt,
    request,
    streamed_bytes,
)
from tokenvm.sizes import format_size


def measure(
    subject: Subject,
    pages: Pages,
    contexts: Sequence[int],
    paging: Paging,
    tokens: int,
    rounds: int,
    console: Console,
) -> Report:
    """Time `tokens` steps at every context in turn, `rounds` times. Pages are filled, not computed."""
    trained = subject.model.spec.max_model_len
    longer = subject.beyond_training(max(contexts) + tokens + WARM_STEPS + 1)
    samples: dict[int, list[dict[str, Any]]] = {context: [] for context in contexts}
    with probing(subject.settings.disk_path, subject.threads) as probe:
        for turn in range(rounds):
            for context in contexts:
                console.print(f"round {turn + 1} of {rounds}, {context:,} tokens", style="dim")
                samples[context].append(_sample(longer, probe, pages, context, tokens, paging))
    rows = [_row(context, samples[context]) for context in contexts]
    rates = median_rates([sample["rates"] for each in samples.values() for sample in each])
    figures = {
        "bench": "context",
        "model": subject.name,
        "kv_limit_bytes": paging.kv_limit,
        "trained_for_tokens": trained,
        "machine": machine() | {"threads": subject.threads} | rates,
        "rows": rows,
    }
    return Report("context", figures, [_grid(rows)], [*_notes(figures), rates_note(rates)])


def _sample(
    subject: Subject, probe: Probe, pages: Pages, context: int, tokens: int, paging: Paging
) -> dict[str, Any]:
    total = tokens + WARM_STEPS + 1
    with subject.turn(), subject.engine(paging, context + total) as engine:
        add_seeded(engine, request(subject.ids(context), total), pages)
        read_prompt(engine)
        before = probe.rates()
        steps_s = decode_steps(engine)
        rates, stats = better_rates(before, probe.rates()), engine.stats()
    streamed = streamed_bytes(stats)
    return {
        "steps_s": steps_s,
        "rates": rates,
        "streamed": streamed,
        "floor_s": floor_s(subject, context, streamed, rates),
        "hidden_ratio": stats["hidden_ratio"],
    }


def _row(context: int, samples: list[dict[str, Any]]) -> dict[str, Any]:
    p50s = [statistics.median(sample["steps_s"]) for sample in samples]
    return {
        "context": context,
        "p50_ms": 1000 * statistics.median(p50s),
        "p95_ms": 1000 * percentile([step for sample in samples for step in sample["steps_s"]], 0.95),
        "streamed_bytes_per_token": samples[-1]["streamed"],
        "floor_ms": 1000 * statistics.median(sample["floor_s"] for sample in samples),
        "fraction_of_floor": statistics.median(s["floor_s"] / p for s, p in zip(samples, p50s, strict=True)),
        "hidden_ratio": statistics.median(sample["hidden_ratio"] for sample in samples),
    }


def _grid(rows: list[dict[str, Any]]) -> Grid:
    def cells(row: dict[str, Any]) -> list[str]:
        return [
            f"{row['context']:,}",
            f"{row['p50_ms']:.1f}",
            f"{row['p95_ms']:.1f}",
            f"{row['streamed_bytes_per_token'] / 1e6:.1f}",
            f"{row['floor_ms']:.1f}",
            f"{row['fraction_of_floor']:.2f}",
            f"{row['hidden_ratio']:.2f}" if row["streamed_bytes_per_token"] else "-",
        ]

    names = ("context", "p50 ms", "p95 ms", "MB/tok", "floor ms", "of floor", "hidden")
    return Grid(names, [cells(row) for row in rows])


def _notes(figures: dict[str, Any]) -> list[str]:
    return [
        f"KV memory: {format_size(figures['kv_limit_bytes'])} at every context, the rest on disk. Pages hold random "
        f"numbers: the model was made for {figures['trained_for_tokens']:,} tokens, and only the time of a step is "
        "measured here, which does not depend on what the pages say."
    ]
