"""The `tokenvm` command: thin; the work is in the rooms below. What a user can fix is one line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenvm import __version__
from tokenvm.config import Resolved, config_path, read_config_file, resolve
from tokenvm.errors import ConfigError, TokenVMError

app = typer.Typer(
    help="Virtual memory for language-model inference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench = typer.Typer(help="Measurements: a card for people, one JSON line for machines.", no_args_is_help=True)
app.add_typer(bench, name="bench")

_INTERRUPTED = 130

Model = Annotated[str, typer.Option(help="A built-in name (smollm2), a Hugging Face folder or a .gguf file.")]
KvLimit = Annotated[str | None, typer.Option(help='Memory for KV pages, such as "64MB".')]
HostMemory = Annotated[str | None, typer.Option(help="Memory of the host tier; 0 switches it off.")]
NvmePath = Annotated[Path | None, typer.Option(help="Folder for pages on disk.")]
NvmeLimit = Annotated[str | None, typer.Option(help="Disk space for pages; 0 switches the tier off.")]
BlockTokens = Annotated[str | None, typer.Option(help="Tokens a page: auto or 16 to 256.")]
Threads = Annotated[
    int | None, typer.Option(help="Compute threads; by default every core this process may use.")
]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16 or float32.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON line last.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what was asked for.")] = False,
) -> None:
    """Virtual memory for language-model inference."""
    _set_up_logging(verbose, quiet)
    if version:
        typer.echo(f"tokenvm {__version__}")
        raise typer.Exit


@app.command()
def run(
    model: Model = "smollm2",
    file: Annotated[Path | None, typer.Option(help="A text to read before the question.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The question.")] = None,
    needle: Annotated[
        bool, typer.Option("--needle", help="Hide a random code in a document; ask for it.")
    ] = False,
    kv_fraction: Annotated[float, typer.Option(help="KV memory as a share of what the text needs.")] = 0.1,
    kv_limit: KvLimit = None,
    host_memory: HostMemory = None,
    nvme_path: NvmePath = None,
    nvme_limit: NvmeLimit = None,
    block_tokens: BlockTokens = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 48,
    compare: Annotated[
        bool, typer.Option(help="Run again with unlimited memory and compare every bit.")
    ] = True,
    threads: Threads = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Answer a question about a text while the KV cache may use a fraction of the memory it needs."""
    from tokenvm.bench.job import Job, run_job

    resolved = _memory(
        kv_limit=kv_limit,
        host_memory=host_memory,
        nvme_path=nvme_path,
        nvme_limit=nvme_limit,
        block_tokens=block_tokens,
    )
    _check_fraction(kv_fraction)
    job = Job.needle() if needle else Job.from_user(file, prompt)
    card = run_job(job, model, resolved, kv_fraction=kv_fraction, max_tokens=max_tokens, compare=compare,
                   threads=threads, dtype=dtype)  # fmt: skip
    if as_json:
        typer.echo(json.dumps(card))


@bench.command("decode")
def bench_decode(
    model: Model = "smollm2",
    context: Annotated[int, typer.Option(min=1, help="Tokens of context.")] = 8000,
    kv_fraction: Annotated[
        str, typer.Option(help="Shares of the KV memory needed, comma separated.")
    ] = "1,0.5,0.1",
    tokens: Annotated[int, typer.Option(min=2, help="Decoded tokens a round.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over all fractions; medians are printed.")] = 1,
    nvme_path: NvmePath = None,
    threads: Threads = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Time a decode step at several shares of KV memory, beside the machine's own floor."""
    from tokenvm.bench.decode import measure

    fractions = _fractions(kv_fraction)
    resolved = _memory(nvme_path=nvme_path)
    figures = measure(model, context, fractions, tokens=tokens, rounds=rounds, base=resolved.config, threads=threads,
                      dtype=dtype)  # fmt: skip
    if as_json:
        typer.echo(json.dumps(figures))


@app.command()
def verify(
    model: Model = "smollm2",
    full: Annotated[
        bool, typer.Option("--full", help="The long grid: 20 prompts of up to 6,000 tokens.")
    ] = False,
    nvme_path: NvmePath = None,
    as_json: Json = False,
) -> None:
    """Compare with Hugging Face Transformers, and every memory limit with every other, bit for bit."""
    from tokenvm.bench.verify import run_verify

    resolved = _memory(nvme_path=nvme_path)
    report = run_verify(model, full=full, base=resolved.config)
    if as_json:
        typer.echo(json.dumps(report))
    if not report["passed"]:
        raise typer.Exit(1)


@app.command()
def config(
    kv_limit: KvLimit = None,
    host_memory: HostMemory = None,
    nvme_path: NvmePath = None,
    nvme_limit: NvmeLimit = None,
    block_tokens: BlockTokens = None,
    as_json: Json = False,
) -> None:
    """Print every setting, its value and where it came from."""
    resolved = _memory(
        kv_limit=kv_limit,
        host_memory=host_memory,
        nvme_path=nvme_path,
        nvme_limit=nvme_limit,
        block_tokens=block_tokens,
    )
    values = {name: str(value) for name, value in resolved.config.model_dump().items()}
    if as_json:
        rows = {name: {"value": values[name], "source": resolved.sources[name]} for name in values}
        typer.echo(json.dumps(rows))
        return
    for name, value in values.items():
        typer.echo(f"{name:18} {value:24} {resolved.sources[name]}")


@app.command()
def env(as_json: Json = False) -> None:
    """Print what a bug report needs: versions, processor, kernels, memory, disk."""
    from tokenvm.bench.environment import describe

    facts = describe()
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        typer.echo(f"{name:18} {value}")


def main() -> None:
    """Run the command line; every error a user can fix becomes one line and exit code 2, Ctrl-C exit code 130."""
    try:
        code = _run_app()
    except TokenVMError as error:
        code = _refuse(str(error))
    except typer.TyperException as error:
        code = _refuse(error.format_message())
    sys.exit(code)


def _run_app() -> int:
    try:
        code: int = app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        typer.echo("interrupted", err=True)
    return code


def _refuse(message: str) -> int:
    typer.echo(f"tokenvm: {message}", err=True)
    return 2


def _memory(**given: Any) -> Resolved:
    """Merge the command line with environment, file and defaults."""
    overrides = {name: str(value) for name, value in given.items() if value is not None}
    path = config_path(os.environ)
    return resolve({}, os.environ, read_config_file(path), command_line=overrides, file_name=str(path))


def _fractions(text: str) -> list[float]:
    try:
        fractions = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f'--kv-fraction "{text}" is not a list of numbers: type --kv-fraction 1,0.5,0.1'
        ) from None
    for fraction in fractions:
        _check_fraction(fraction)
    return fractions


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ConfigError(f"--kv-fraction {fraction} is not above 0 and at most 1: type --kv-fraction 0.1")


def _set_up_logging(verbose: int, quiet: bool) -> None:
    import logging

    named = os.environ.get("TOKENVM_LOG_LEVEL", "").upper()
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    if quiet:
        level = logging.ERROR
    if named:
        known = logging.getLevelNamesMapping()
        if named not in known:
            raise ConfigError(
                f"TOKENVM_LOG_LEVEL={named} is not a level: type one of {', '.join(sorted(known))}"
            )
        level = known[named]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
