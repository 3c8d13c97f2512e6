"""`tokenvm bench`: one command per question."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenvm.cli_options import (
    Dtype,
    Json,
    KvCacheDtype,
    KvLimit,
    MaxNumSeqs,
    Model,
    NvmePath,
    Threads,
    fractions_of,
    merged_memory,
)
from tokenvm.errors import ConfigError
from tokenvm.sizes import parse_size

if TYPE_CHECKING:
    from rich.console import Console

    from tokenvm.bench.report import Report
    from tokenvm.bench.seed import Pages
    from tokenvm.bench.subject import Subject

bench = typer.Typer(help="Measurements: a card for people, one JSON line for machines.", no_args_is_help=True)

Context = Annotated[int, typer.Option(min=1, help="Tokens of context.")]
Fractions = Annotated[str, typer.Option(help="Shares of the KV memory needed, comma separated.")]
Tokens = Annotated[int, typer.Option(min=8, help="Decoded tokens a round.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds over everything, in turn; medians are printed.")]
Write = Annotated[
    Path | None,
    typer.Option(
        help="A Markdown file whose section of this name gets the tables; the figures go beside it."
    ),
]
Lock = Annotated[
    Path | None,
    typer.Option(help="A lock file held during each timed piece, where several jobs share the machine."),
]


@bench.command("decode")
def bench_decode(
    model: Model = "smollm2",
    context: Context = 8000,
    kv_fraction: Fractions = "1,0.5,0.1",
    tokens: Tokens = 32,
    rounds: Rounds = 1,
    kv_cache_dtype: KvCacheDtype = None,
    nvme_path: NvmePath = None,
    threads: Threads = None,
    dtype: Dtype = "auto",
    lock: Lock = None,
    write: Write = None,
    as_json: Json = False,
) -> None:
    """Time a decode step at several shares of KV memory, beside the machine's own floor."""
    from tokenvm.bench.decode import measure

    fractions = fractions_of(kv_fraction)
    subject = _subject(model, dtype, threads, nvme_path, lock, kv_cache_dtype)
    _finish(measure(subject, context, fractions, tokens, rounds, _console()), write, as_json)


@bench.command("prefill")
def bench_prefill(
    model: Model = "smollm2",
    context: Context = 8000,
    kv_fraction: Fractions = "1",
    rounds: Rounds = 3,
    nvme_path: NvmePath = None,
    threads: Threads = None,
    dtype: Dtype = "auto",
    lock: Lock = None,
    write: Write = None,
    as_json: Json = False,
) -> None:
    """Time the reading of a prompt, against the most this processor can multiply."""
    from tokenvm.bench.prefill import measure

    fractions = fractions_of(kv_fraction)
    subject = _subject(model, dtype, threads, nvme_path, lock)
    _finish(measure(subject, context, fractions, rounds, _console()), write, as_json)


@bench.command("stream")
def bench_stream(
    model: Model = "smollm2",
    context: Context = 8000,
    kv_fraction: Fractions = "1,0.9,0.75,0.5,0.25,0.1",
    codecs: Annotated[
        str, typer.Option(help="Codecs of the pages on disk, comma separated, or auto for all.")
    ] = "auto",
    link_bandwidth: Annotated[
        str | None,
        typer.Option(
            help='Bytes a second of an emulated link to host memory, such as "8GB/s"; measured beside the disk.'
        ),
    ] = None,
    tokens: Tokens = 20,
    rounds: Rounds = 1,
    nvme_path: NvmePath = None,
    threads: Threads = None,
    dtype: Dtype = "auto",
    lock: Lock = None,
    write: Write = None,
    as_json: Json = False,
) -> None:
    """Find out how a step slows down as more of the KV lies below the device: raw, compressed, over a link."""
    from tokenvm.bench.stream import lines_of, measure

    fractions = fractions_of(kv_fraction)
    lines = lines_of(codecs, link_bandwidth)
    subject = _subject(model, dtype, threads, nvme_path, lock)
    pages = _pages(subject, context, any(line.codec != "none" for line in lines))
    _finish(measure(subject, pages, context, fractions, lines, tokens, rounds, _console()), write, as_json)


@bench.command("context")
def bench_context(
    model: Model = "smollm2",
    contexts: Annotated[
        str, typer.Option(help="Tokens of context, comma separated.")
    ] = "1024,4096,16384,65536",
    kv_limit: Annotated[str, typer.Option(help="Memory for KV pages at every context.")] = "64MB",
    tokens: Annotated[int, typer.Option(min=1, help="Timed tokens a round.")] = 8,
    rounds: Rounds = 1,
    nvme_path: NvmePath = None,
    threads: Threads = None,
    dtype: Dtype = "auto",
    lock: Lock = None,
    write: Write = None,
    as_json: Json = False,
) -> None:
    """Time a decode step at growing contexts under a fixed limit of KV memory, also beyond the model's training."""
    from tokenvm.bench.context import measure
    from tokenvm.bench.subject import Paging

    lengths = sorted(_whole_numbers("--contexts", contexts))
    paging = Paging(kv_limit=parse_size(kv_limit, "kv_limit"))
    subject = _subject(model, dtype, threads, nvme_path, lock)
    pages = _pages(subject, max(lengths), computed=False)
    _finish(measure(subject, pages, lengths, paging, tokens, rounds, _console()), write, as_json)


@bench.command("codec")
def bench_codec(
    model: Model = "smollm2",
    context: Annotated[int, typer.Option(min=256, help="Tokens of text whose KV is used.")] = 2000,
    rounds: Rounds = 3,
    threads: Threads = None,
    dtype: Dtype = "auto",
    lock: Lock = None,
    write: Write = None,
    as_json: Json = False,
) -> None:
    """Put the KV of a real text through every lossless codec there is: ratio, and bytes a second both ways."""
    from tokenvm.bench.codec import measure, usable_codecs
    from tokenvm.bench.subject import turn

    subject = _subject(model, dtype, threads, None, lock)
    pages = _pages(subject, context, computed=True)
    codecs, skipped = usable_codecs()
    with turn(lock):
        report = measure(pages, "KV of an English text", codecs, skipped, rounds, _console())
    _finish(report, write, as_json)


@bench.command("disk")
def bench_disk(
    model: Model = "smollm2",
    rounds: Rounds = 3,
    nvme_path: NvmePath = None,
    lock: Lock = None,
    write: Write = None,
    as_json: Json = False,
) -> None:
    """Time reads and writes of the disk below the pages, by size and calls in flight, and our own ring's reads."""
    from tokenvm.bench.disk import measure
    from tokenvm.bench.subject import page_layout, turn

    subject = _subject(model, "auto", None, nvme_path, lock)
    with turn(lock):
        report = measure(subject.settings.disk_path, page_layout(subject), rounds, _console())
    _finish(report, write, as_json)


@bench.command("memory")
def bench_memory(
    size: Annotated[str, typer.Option(help="Size of the buffer, far larger than any cache.")] = "512MiB",
    rounds: Rounds = 5,
    lock: Lock = None,
    write: Write = None,
    as_json: Json = False,
) -> None:
    """Time reads and copies of memory on one core and on all, in small and huge pages of the system."""
    from tokenvm.bench.memory import measure
    from tokenvm.bench.subject import turn

    nbytes = max(1 << 22, parse_size(size, "size") >> 22 << 22)
    with turn(lock):
        report = measure(nbytes, rounds, _console())
    _finish(report, write, as_json)


@bench.command("schedule")
def bench_schedule(
    running: Annotated[str, typer.Option(help="Running sequences, comma separated.")] = "64,512,4096",
    waiting: Annotated[int, typer.Option(min=1, help="Sequences that wait.")] = 4000,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps.")] = 200,
    lock: Lock = None,
    write: Write = None,
    as_json: Json = False,
) -> None:
    """Time the decision what a step computes, with many sequences running and thousands waiting. Needs no model."""
    from tokenvm.bench.schedule import measure
    from tokenvm.bench.subject import turn

    sizes = _whole_numbers("--running", running)
    with turn(lock):
        report = measure(sizes, waiting, steps, _console())
    _finish(report, write, as_json)


@bench.command("serve")
def bench_serve(
    model: Model = "smollm2",
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask at once.")] = 64,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    tokens: Tokens = 64,
    rounds: Rounds = 3,
    kv_limit: KvLimit = None,
    max_num_seqs: MaxNumSeqs = None,
    threads: Threads = None,
    lock: Lock = None,
    write: Write = None,
    as_json: Json = False,
) -> None:
    """Time a crowd of streaming clients against a server, and the same work by LLM.generate in turn."""
    from tokenvm.bench.serve import Crowd, Limits, measure

    limits = Limits(merged_memory(kv_limit=kv_limit).config, kv_limit, max_num_seqs, threads, lock)
    report = measure(model, limits, Crowd(clients, prompt, tokens), rounds, _console())
    _finish(report, write, as_json)


def _subject(
    model: str,
    dtype: str,
    threads: int | None,
    nvme_path: Path | None,
    lock: Path | None,
    kv_cache_dtype: str | None = None,
) -> Subject:
    from tokenvm.bench.subject import open_subject

    memory = merged_memory(nvme_path=nvme_path, kv_cache_dtype=kv_cache_dtype)
    return open_subject(model, dtype, memory.config, threads, lock)


def _pages(subject: Subject, context: int, computed: bool) -> Pages:
    from tokenvm.bench.subject import made_pages

    return made_pages(subject, context, computed)


def _whole_numbers(option: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            f'{option} "{text}" is not a list of whole numbers above 0: type {option} 1024,8000'
        )
    return [int(part) for part in parts]


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _finish(report: Report, write: Path | None, as_json: bool) -> None:
    from tokenvm.bench.report import finish

    finish(report, write, as_json)
