"""What `tokenvm config` prints: the settings and where they came from, and what they make of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from tokenvm.config import MemoryConfig, Resolved
from tokenvm.sizes import format_size

if TYPE_CHECKING:
    from tokenvm.engine.startup import StartupPlan


def show_settings(resolved: Resolved, *, as_json: bool) -> None:
    """Print each setting, its value and its source; as one JSON line if asked."""
    values = {name: str(value) for name, value in resolved.config.model_dump().items()}
    if as_json:
        rows = {name: {"value": values[name], "source": resolved.sources[name]} for name in values}
        typer.echo(json.dumps(rows))
        return
    for name, value in values.items():
        typer.echo(f"{name:20} {value:24} {resolved.sources[name]}")


def show_plan(model: str, dtype: str, memory: MemoryConfig, *, as_json: bool, **numbers: int | None) -> None:
    """Plan a start of `model` without loading its weights and print the plan: a card, or one JSON line.

    Raises what the start would raise.
    """
    from tokenvm.engine.launch import plan_engine
    from tokenvm.llm import make_settings
    from tokenvm.models.fetch import resolve_model
    from tokenvm.models.weights.outline import outline_model

    outlined = outline_model(resolve_model(model), dtype)
    plan = plan_engine(outlined, make_settings(memory, **numbers))
    if as_json:
        typer.echo(json.dumps(plan.as_dict()))
        return
    _print_card(model, plan)


def _print_card(model: str, plan: StartupPlan) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    takes = Table(title=f"{model} ({plan.dtype}) takes", title_justify="left", box=None, show_header=False)
    takes.add_column("what")
    takes.add_column("bytes", justify="right")
    takes.add_column("how")
    for row in _memory_rows(plan):
        takes.add_row(*row)
    console.print(takes)
    fits = Table(title="\nSequences at once", title_justify="left", box=None)
    for heading in ("tokens each", "resident", "in all tiers"):
        fits.add_column(heading, justify="right")
    for fit in plan.fits:
        fits.add_row(f"{fit.tokens:,}", f"{fit.resident}", f"{fit.in_all}")
    console.print(fits)
    console.print(
        f"\nLargest batch: {plan.largest_batch_rows} tokens of {plan.crowd} sequences, {plan.threads} threads"
    )


def _memory_rows(plan: StartupPlan) -> Iterator[tuple[str, str, str]]:
    """Yield what is taken, how much, and what that is."""

    def pages(count: int) -> tuple[str, str]:
        how = f"{count} × {plan.block_tokens} tokens" if count else "off"
        return format_size(count * plan.page_bytes), how

    yield "weights", format_size(plan.weight_bytes), ""
    yield "workspace", format_size(plan.workspace_bytes), "activations, logits, scratch"
    yield ("pages", *pages(plan.device_pages))
    yield "ring", format_size(plan.ring_bytes), ""
    yield "device in all", format_size(plan.device_bytes), f"KV in {plan.kv_format}"
    yield ("host pages", *pages(plan.host_pages))
    yield ("disk pages", *pages(plan.disk_pages))
