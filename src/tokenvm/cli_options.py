"""Options that several commands share, and how settings given on the command line are merged with the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tokenvm.config import Resolved, config_path, read_config_file, resolve
from tokenvm.errors import ConfigError

Model = Annotated[str, typer.Option(help="A built-in name (smollm2), a Hugging Face folder or a .gguf file.")]
VramLimit = Annotated[
    str | None, typer.Option(help='Device memory for all: weights, pages, workspace, such as "4GB".')
]
KvLimit = Annotated[str | None, typer.Option(help='Memory for KV pages, such as "64MB".')]
KvTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Memory for KV pages, as the tokens they hold; instead of --kv-limit."),
]
HostMemory = Annotated[str | None, typer.Option(help="Memory of the host tier; 0 switches it off.")]
NvmePath = Annotated[Path | None, typer.Option(help="Folder for pages on disk.")]
NvmeLimit = Annotated[str | None, typer.Option(help="Disk space for pages; 0 switches the tier off.")]
NoDisk = Annotated[
    bool, typer.Option("--no-disk", help="Write no page to any disk; the same as --nvme-limit 0.")
]
BlockTokens = Annotated[str | None, typer.Option(help="Tokens a page: auto or 16 to 256.")]
KvCacheDtype = Annotated[
    str | None, typer.Option(help="How KV is kept: auto (exactly), int8 or fp8 (half the bytes, lossy).")
]
Threads = Annotated[
    int | None, typer.Option(help="Compute threads; by default every core this process may use.")
]
MaxModelLen = Annotated[
    int | None, typer.Option(help="Most tokens of a sequence; by default what the model was made for.")
]
MaxNumSeqs = Annotated[int | None, typer.Option(help="Most sequences that run at once.")]
MaxTokensPerForward = Annotated[int | None, typer.Option(help="Most tokens that a step computes.")]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16 or float32.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON line last.")]


def takes(*kinds: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function that is given one dataclass of options for each of `kinds`.

    Their fields become options of the command, beside the keyword arguments that the function has of its own.
    """

    def made(function: Callable[..., None]) -> Callable[..., None]:
        names = [[field.name for field in fields(kind)] for kind in kinds]

        def command(**given: Any) -> None:
            parts = [{name: given.pop(name) for name in own} for own in names]
            function(*(kind(**part) for kind, part in zip(kinds, parts, strict=True)), **given)

        hints = get_type_hints(function, include_extras=True)
        own = [
            name for name, one in signature(function).parameters.items() if one.kind is Parameter.KEYWORD_ONLY
        ]
        found = [Parameter(name, Parameter.KEYWORD_ONLY, annotation=hints[name]) for name in own]
        for kind in kinds:
            found += _parameters(kind)
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__annotations__ = {one.name: one.annotation for one in found}
        command.__signature__ = signature(command).replace(parameters=found)  # type: ignore[attr-defined]
        return command

    return made


def _parameters(kind: type[Any]) -> list[Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in fields(kind)
    ]


def merged_memory(**given: Any) -> Resolved:
    """Merge the command line with environment, file and defaults. `no_disk` is another way to say `nvme_limit`."""
    if given.pop("no_disk", False):
        if given.get("nvme_limit") is not None:
            raise ConfigError("--no-disk and --nvme-limit say the same thing twice: leave one of them out")
        given["nvme_limit"] = 0
    overrides = {name: str(value) for name, value in given.items() if value is not None}
    path = config_path(os.environ)
    return resolve({}, os.environ, read_config_file(path), command_line=overrides, file_name=str(path))


def fractions_of(text: str) -> list[float]:
    """Read "1,0.5,0.1"; ConfigError where that is no list of shares above 0 and at most 1."""
    try:
        fractions = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f'--kv-fraction "{text}" is not a list of numbers: type --kv-fraction 1,0.5,0.1'
        ) from None
    for fraction in fractions:
        check_fraction(fraction)
    return fractions


def check_fraction(fraction: float) -> None:
    """Raise ConfigError unless it is above 0 and at most 1."""
    if not 0 < fraction <= 1:
        raise ConfigError(f"--kv-fraction {fraction} is not above 0 and at most 1: type --kv-fraction 0.1")
