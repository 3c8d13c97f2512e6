"""A measurement as a card for people, one JSON line for machines and a section of a document."""

from __future__ import annotations

import json
import platform
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tokenvm.bench.environment import processor
from tokenvm.errors import ConfigError
from tokenvm.kernels.native import isa
from tokenvm.machine import usable_cores


@dataclass(frozen=True, slots=True)
class Grid:
    """A small table: texts under column names. All rows are as long as `columns`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return it as a Markdown table."""
        lines = [self.columns, ["---"] + ["---:"] * (len(self.columns) - 1), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def show(self, console: Console) -> None:
        """Print it."""
        table = Table(box=None, padding=(0, 1))
        for name in self.columns:
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured: `figures` are plain values, `grids` and `notes` say the same to people."""

    name: str
    figures: Mapping[str, Any]
    grids: Sequence[Grid]
    notes: Sequence[str] = ()

    def show(self, console: Console) -> None:
        """Print the card."""
        for grid in self.grids:
            grid.show(console)
        for note in self.notes:
            console.print(note)

    def markdown(self, heading: str) -> str:
        """Return the card as Markdown below a line that says where, when and how."""
        parts = [heading, *(grid.markdown() for grid in self.grids), *self.notes]
        return "\n\n".join(parts)


def finish(report: Report, write: Path | None, as_json: bool, width: int | None = None) -> None:
    """Print the card, put it into a document if one is named, and print one JSON line last if that is wanted."""
    report.show(Console(highlight=False, width=width))
    if write is not None:
        write_report(report, write)
    if as_json:
        print(json.dumps(report.figures))  # noqa: T201 - it is the answer


def machine() -> dict[str, Any]:
    """Return what a figure is worth nothing without."""
    return {
        "processor": processor(),
        "cores": usable_cores(),
        "kernels": isa(),
        "system": platform.platform(),
        "date": time.strftime("%Y-%m-%d"),
    }


def heading(facts: Mapping[str, Any], words: Sequence[str]) -> str:
    """Return the line above a section's tables: date, machine and the command that anybody can type."""
    command = shlex.join(words)
    cores = f"{facts['cores']} cores" if facts["cores"] != 1 else "1 core"
    return f"{facts['date']}, {cores} of {facts['processor']} ({facts['kernels']} kernels), by `{command}`:"


def typed(argv: Sequence[str]) -> list[str]:
    """Return a process's arguments as somebody would type them in the repository, files by their names alone."""
    script = Path(argv[0])
    words = [re.sub(r"(^|=)/[^=]*/", r"\1", word) for word in without_destination(argv[1:])]
    if script.parent.name == "benchmarks":
        return ["python", f"benchmarks/{script.name}", *words]
    return ["tokenvm", *words]


def without_destination(words: Sequence[str]) -> list[str]:
    """Return a command line without what says where its results go and whom it waits for."""
    kept: list[str] = []
    aside = ("--write", "--lock")
    for before, word in zip(["", *words], words, strict=False):
        named = word.partition("=")[0]
        if word != "--json" and named not in aside and before not in aside:
            kept.append(word)
    return kept


def write_report(report: Report, document: Path) -> None:
    """Put the tables between the marks `<!-- NAME -->` and `<!-- /NAME -->` of a document, the figures beside it.

    Raises ConfigError where the document cannot be read or has no such marks.
    """
    facts = machine()
    words = typed(sys.argv)
    text = _read(document)
    document.write_text(replace_section(text, report.name, report.markdown(heading(facts, words))), "utf-8")
    folder = document.with_suffix("")
    folder.mkdir(exist_ok=True)
    figures = {**report.figures, "taken_on": facts, "command": words}
    (folder / f"{report.name}.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def replace_section(text: str, name: str, body: str) -> str:
    """Return `text` with another body between the marks of section `name`; ConfigError where they are missing."""
    head, _, tail = _parts(text, name)
    begin, end = _marks(name)
    return f"{head}{begin}\n{body}\n{end}{tail}"


def add_chart(text: str, name: str, image: str, title: str) -> str:
    """Return `text` whose section `name` shows an image last, once."""
    link = f"![{title}]({image})"
    body = _parts(text, name)[1].strip()
    return text if link in body else replace_section(text, name, f"{body}\n\n{link}")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def _parts(text: str, name: str) -> tuple[str, str, str]:
    """Return what stands before a section's marks, between and behind them."""
    begin, end = _marks(name)
    head, found, rest = text.partition(begin)
    body, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ConfigError(f"the document has no place for this: put {begin} and {end} on lines of their own")
    return head, body, tail


def _read(document: Path) -> str:
    try:
        return document.read_text("utf-8")
    except OSError as error:
        raise ConfigError(
            f"--write {document} cannot be read ({error.strerror}): name a Markdown file"
        ) from error
