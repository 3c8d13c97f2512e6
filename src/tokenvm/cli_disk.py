"""`tokenvm disk`: the pages that a folder keeps from one process to the next."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenvm.cli_options import Json, merged_memory
from tokenvm.errors import ConfigError
from tokenvm.sizes import format_size, parse_duration

if TYPE_CHECKING:
    from tokenvm.memory.kept_folder import FolderFacts

disk = typer.Typer(help="Look at, check and clean a folder of kept pages.", no_args_is_help=True)

Folder = Annotated[Path | None, typer.Argument(help="The folder; by default the nvme_path of the settings.")]


@disk.command("inspect")
def inspect(folder: Folder = None, as_json: Json = False) -> None:
    """Say what a folder holds: pages, bytes, ages, models, and who writes to it. It may be in use."""
    from tokenvm.memory.kept_folder import inspect_folder

    facts = inspect_folder(_named(folder))
    if as_json:
        typer.echo(json.dumps(asdict(facts)))
        return
    for name, value in _lines(facts):
        typer.echo(f"{name:14} {value}")


@disk.command("verify")
def verify(folder: Folder = None, as_json: Json = False) -> None:
    """Read every page and compare its checksums; exit code 1 where one is damaged. It may be in use."""
    from tokenvm.memory.kept_folder import verify_folder

    found = verify_folder(_named(folder), _progress())
    facts = asdict(found)
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        whole = found.pages - found.changed - len(found.damaged) - len(found.missing)
        typer.echo(f"{whole} of {found.pages} pages are whole, {len(found.damaged)} damaged, "
                   f"{len(found.missing)} without their file, {found.changed} written again meanwhile")  # fmt: skip
    if found.damaged or found.missing:
        raise typer.Exit(1)


@disk.command("prune")
def prune(
    folder: Folder = None,
    older_than: Annotated[str | None, typer.Option(help='Age from which pages go, such as "7d".')] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove every page.")] = False,
    as_json: Json = False,
) -> None:
    """Remove pages by age, or all of them; what they were is overwritten. Nobody may write there meanwhile."""
    from tokenvm.memory.kept_folder import prune_folder

    if everything == (older_than is not None):
        raise ConfigError("which pages? Type --older-than 7d, or --all")
    oldest_s = (
        float("inf") if older_than is None else time.time() - parse_duration(older_than, "--older-than")
    )
    gone, left = prune_folder(_named(folder), oldest_s)
    if as_json:
        typer.echo(json.dumps({"removed_pages": gone, "pages": left}))
    else:
        typer.echo(f"removed {gone} pages, {left} stay")


def _named(folder: Path | None) -> Path:
    if folder is not None:
        return folder.expanduser()
    path = merged_memory().config.nvme_path
    if path == "auto":
        raise ConfigError("no nvme_path is set: type the folder, as in `tokenvm disk inspect ~/kv`")
    return Path(path)


def _lines(facts: FolderFacts) -> list[tuple[str, Any]]:
    now_s = time.time()
    ages = f"{_age(now_s - facts.newest_s)} to {_age(now_s - facts.oldest_s)} old" if facts.pages else "none"
    return [
        ("folder", facts.path),
        ("index", facts.state),
        ("in use by", f"process {facts.writer}" if facts.writer else "nobody"),
        ("on disk", format_size(facts.taken_bytes)),
        ("pages", f"{facts.pages} of {facts.capacity}, {format_size(facts.page_bytes)} each"),
        ("written", ages),
        ("codec", facts.codec),
        (
            "models",
            ", ".join(f"{name[:8]} ({pages} pages)" for name, pages in facts.models.items()) or "none",
        ),
        ("damaged", f"{facts.damaged_records} records"),
    ]


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _progress() -> Any:
    """Show how far a check is, on a terminal."""
    if not sys.stderr.isatty():
        return lambda done, total: None

    def show(done: int, total: int) -> None:
        typer.echo(f"\r{done} of {total} pages", nl=done == total, err=True)

    return show
