"""The `tokenvm` command: thin; the work is in the rooms below. What a user can fix is one line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tokenvm import __version__
from tokenvm.cli_bench import bench
from tokenvm.cli_disk import disk
from tokenvm.cli_options import (
    BlockTokens,
    Dtype,
    HostMemory,
    Json,
    KvCacheDtype,
    KvLimit,
    KvTokens,
    MaxModelLen,
    MaxNumSeqs,
    MaxTokensPerForward,
    Model,
    NoDisk,
    NvmeLimit,
    NvmePath,
    Threads,
    check_fraction,
    merged_memory,
)
from tokenvm.cli_serve import ping, serve
from tokenvm.cli_simulate import simulate
from tokenvm.errors import ConfigError, TokenVMError

app = typer.Typer(
    help="Virtual memory for language-model inference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(bench, name="bench")
app.add_typer(disk, name="disk")
app.command()(serve)
app.command()(ping)
app.command("simulate")(simulate)

_INTERRUPTED = 130


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
    no_disk: NoDisk = False,
    block_tokens: BlockTokens = None,
    kv_cache_dtype: KvCacheDtype = None,
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

    resolved = merged_memory(
        kv_limit=kv_limit,
        host_memory=host_memory,
        nvme_path=nvme_path,
        nvme_limit=nvme_limit,
        no_disk=no_disk,
        block_tokens=block_tokens,
        kv_cache_dtype=kv_cache_dtype,
    )
    check_fraction(kv_fraction)
    card = run_job(Job.needle() if needle else Job.from_user(file, prompt), model, resolved, compare=compare,
                   kv_fraction=kv_fraction, max_tokens=max_tokens, threads=threads, dtype=dtype)  # fmt: skip
    if as_json:
        typer.echo(json.dumps(card))


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

    resolved = merged_memory(nvme_path=nvme_path)
    report = run_verify(model, full=full, base=resolved.config)
    if as_json:
        typer.echo(json.dumps(report))
    if not report["passed"]:
        raise typer.Exit(1)


@app.command()
def config(
    plan: Annotated[bool, typer.Option("--plan", help="Print what a start would take and hold.")] = False,
    model: Model = "smollm2",
    kv_limit: KvLimit = None,
    kv_cache_num_tokens: KvTokens = None,
    host_memory: HostMemory = None,
    nvme_path: NvmePath = None,
    nvme_limit: NvmeLimit = None,
    no_disk: NoDisk = False,
    block_tokens: BlockTokens = None,
    kv_cache_dtype: KvCacheDtype = None,
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    max_tokens_per_forward: MaxTokensPerForward = None,
    threads: Threads = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Print every setting, its value and where it came from; with --plan, what they make of a model."""
    from tokenvm.cli_config import show_plan, show_settings

    resolved = merged_memory(
        kv_limit=kv_limit,
        kv_cache_num_tokens=kv_cache_num_tokens,
        host_memory=host_memory,
        nvme_path=nvme_path,
        nvme_limit=nvme_limit,
        no_disk=no_disk,
        block_tokens=block_tokens,
        kv_cache_dtype=kv_cache_dtype,
    )
    if plan:
        show_plan(model, dtype, resolved.config, as_json=as_json, max_model_len=max_model_len, threads=threads,
                  max_num_seqs=max_num_seqs, max_tokens_per_forward=max_tokens_per_forward)  # fmt: skip
    else:
        show_settings(resolved, as_json=as_json)


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
