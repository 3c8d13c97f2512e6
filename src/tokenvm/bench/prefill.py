"""How long a prompt takes to read, and how much of the processor's best rate that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from tokenvm.bench.figures import Spread, paired_ratios, prefill_operations, spread
from tokenvm.bench.floor import peak_rate
from tokenvm.bench.report import Grid, Report
from tokenvm.bench.subject import Paging, Subject, read_prompt, request
from tokenvm.kernels.peak import peak_name


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt read: seconds to the first token, and the processor's best rate beside it."""

    ttft_s: float
    peak_per_s: float


def measure(subject: Subject, context: int, fractions: list[float], rounds: int, console: Console) -> Report:
    """Read `context` random tokens at every share of KV memory in turn, `rounds` times."""
    subject.check_fits(context, 2)
    samples: dict[float, list[Sample]] = {fraction: [] for fraction in fractions}
    for turn in range(rounds):
        for fraction in fractions:
            console.print(f"round {turn + 1} of {rounds}, {100 * fraction:g} % of the KV memory", style="dim")
            samples[fraction].append(_sample(subject, context, fraction))
    operations = prefill_operations(subject.model.spec, context)
    rows = [_row(fraction, samples, operations) for fraction in fractions]
    figures = {
        "bench": "prefill",
        "model": subject.name,
        "context": context,
        "operations": operations,
        "peak": peak_name(),
        "rows": rows,
    }
    return Report("prefill", figures, [_grid(rows)], _notes(figures))


def _sample(subject: Subject, context: int, fraction: float) -> Sample:
    with subject.turn(), subject.engine(Paging(fraction), context + 2) as engine:
        before = peak_rate(subject.threads)
        engine.add(request(subject.ids(context), 2))
        ttft_s = read_prompt(engine)
        after = peak_rate(subject.threads)
    return Sample(ttft_s, (before + after) / 2)


def _row(fraction: float, samples: dict[float, list[Sample]], operations: int) -> dict[str, Any]:
    mine, first = samples[fraction], next(iter(samples.values()))
    seconds = [sample.ttft_s for sample in mine]
    shares = spread([operations / s.ttft_s / s.peak_per_s for s in mine])
    return {
        "kv_fraction": fraction,
        "ttft_s": spread(seconds),
        "operations_per_s": operations / spread(seconds).mid,
        "peak_per_s": spread([s.peak_per_s for s in mine]).mid,
        "share_of_peak": shares,
        "against_first": paired_ratios(seconds, [s.ttft_s for s in first]),
    }


def _grid(rows: list[dict[str, Any]]) -> Grid:
    def cells(row: dict[str, Any]) -> list[str]:
        ttft, ratio = Spread(*row["ttft_s"]), Spread(*row["against_first"])
        return [
            f"{100 * row['kv_fraction']:g} %",
            f"{ttft.mid:.2f}",
            f"{ttft.low:.2f} to {ttft.high:.2f}",
            f"{row['operations_per_s'] / 1e12:.2f}",
            f"{row['peak_per_s'] / 1e12:.2f}",
            f"{row['share_of_peak'][1]:.2f}",
            f"{ratio.mid:.2f}",
        ]

    names = ("KV memory", "TTFT s", "from to", "TFLOP/s", "peak TFLOP/s", "of peak", "against the first")
    return Grid(names, [cells(row) for row in rows])


def _notes(figures: dict[str, Any]) -> list[str]:
    return [
        f"{figures['context']:,} random tokens, {figures['operations'] / 1e12:.2f} TFLOP of useful work (two for each "
        f"matrix parameter and token, and the causal half of attention). Peak: {figures['peak']}, no loads, "
        "measured right before and right after each run."
    ]
