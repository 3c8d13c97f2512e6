"""What a person sees of the main job: progress, the answer as it comes, live figures, a card at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from tokenvm.engine.engine import StepResult
from tokenvm.models.progress import Progress, Report
from tokenvm.sizes import format_size


class Answering:
    """The live part of one run."""

    def __init__(self, console: Console, title: str, prompt_tokens: int) -> None:
        self._title = title
        self._prompt_tokens = prompt_tokens
        self._read = 0
        self._written = 0
        self._answer = ""
        self._figures = ""
        self._began_s = time.monotonic()
        self._first_s = 0.0
        self._console = console
        self._live = Live(console=console, refresh_per_second=8, transient=False, auto_refresh=True)

    def __enter__(self) -> Answering:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.update(self._view(), refresh=True)
            self._live.stop()
        else:
            self._console.print(self._view())

    def step(self, result: StepResult, stats: dict[str, Any]) -> None:
        """Enter one step's figures."""
        if self._read < self._prompt_tokens:
            self._read += result.tokens
        if result.choices:
            self._written += 1
            self._first_s = self._first_s or time.monotonic()
        hidden = (
            f"{100 * stats['hidden_ratio']:.0f} % of copying hidden"
            if stats["streamed_pages"]
            else "no copies"
        )
        pages = f"pages: {result.resident_pages} resident, {result.streamed_pages} streamed"
        self._figures = f"{pages} · {hidden} · {self._speed()}"
        self._live.update(self._view())

    def text(self, more: str) -> None:
        """Add to the answer."""
        self._answer += more
        self._live.update(self._view())

    def _speed(self) -> str:
        now_s = time.monotonic()
        if self._written < 2:
            return f"{self._read / (now_s - self._began_s):.0f} tok/s read"
        return f"{(self._written - 1) / (now_s - self._first_s):.1f} tok/s"

    def _view(self) -> Group:
        share = 100 * self._read / self._prompt_tokens
        head = Text(
            f"{self._title:>10}  read {self._read:,} of {self._prompt_tokens:,} tokens ({share:.0f} %)",
            "bold",
        )
        return Group(
            head,
            Text(f"{'':>10}  {self._figures}", "dim"),
            Text(f"{'':>10}  {self._answer.strip()}", "green"),
        )


class Screen:
    """Writes to standard output; plain lines where that is not a terminal."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)

    def say(self, line: str) -> None:
        """Print one line."""
        self.console.print(line)

    @contextmanager
    def getting_model(self) -> Iterator[Report]:
        """Show how far download and conversion are; nothing is shown if there is nothing to do."""
        bars = Bars(console=self.console, transient=True)
        tasks: dict[str, Any] = {}

        def report(progress: Progress) -> None:
            if not tasks and self.console.is_terminal:
                bars.start()
            if progress.message not in tasks:
                tasks[progress.message] = bars.add_task(progress.message, total=progress.total or None)
                if not self.console.is_terminal:
                    self.console.print(progress.message)
            bars.update(tasks[progress.message], completed=progress.done)

        try:
            yield report
        finally:
            if tasks and self.console.is_terminal:
                bars.stop()

    def answering(self, title: str, prompt_tokens: int) -> Answering:
        """Show one run while it goes on."""
        return Answering(self.console, title, prompt_tokens)

    def card(self, card: dict[str, Any]) -> dict[str, Any]:
        """Print the card and return it."""
        self.console.print(_head(card))
        self.console.print(_figures(card))
        if "identical" in card:
            verdict = "yes" if card["identical"] else "NO: this is a bug, please report it with `tokenvm env`"
            self.console.print(f"identical to unlimited memory: {verdict}", style="bold")
        return card


def _head(card: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("question", card["question"])
    table.add_row("answer", card["answer"])
    if "expected" in card:
        table.add_row("hidden code", f"{card['expected']} ({'found' if card['found'] else 'not found'})")
    needed, allowed, peak = (format_size(card[f"kv_{name}_bytes"]) for name in ("needed", "allowed", "peak"))
    table.add_row("KV memory", f"{needed} needed, {allowed} allowed, {peak} used at the peak")
    return table


def _figures(card: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2))
    runs = [name for name in ("limited", "unlimited") if name in card]
    for column in ("", *runs):
        table.add_column(column, justify="left" if not column else "right")
    for label, show in _ROWS:
        table.add_row(label, *(show(card[name]) for name in runs))
    return table


_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("time to first token", lambda run: f"{run['ttft_s']:.2f} s"),
    ("decoding", lambda run: f"{run['tokens_per_s']:.1f} tok/s"),
    ("read from disk", lambda run: format_size(run["moved_bytes"]["nvme_read"])),
    ("written to disk", lambda run: format_size(run["moved_bytes"]["nvme_write"])),
    (
        "host to device, back",
        lambda run: " / ".join(format_size(run["moved_bytes"][d]) for d in ("h2d", "d2h")),
    ),
    ("pages found on device", lambda run: f"{100 * run['hit_rate']['device']:.1f} %"),
    ("copying beside compute", lambda run: f"{100 * run['overlap_ratio']:.0f} %"),
    ("hidden", lambda run: f"{100 * run['hidden_ratio']:.0f} %"),
)
