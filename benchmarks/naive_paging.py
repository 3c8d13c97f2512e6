"""Paging the KV without TokenVM, with the same bytes, the same kernels and the same memory.

    PYTHONPATH=src python benchmarks/naive_paging.py --kv-fraction 0.25 --rounds 3

- mmap: the KV lies in a mapped file and the attention kernels fault it in, with the system's own read-ahead. What is
  resident is held to the limit by giving up the layers used longest ago (MADV_DONTNEED and POSIX_FADV_DONTNEED), which
  is what a memory control group with a strict LRU would do.
- mmap, fixed part kept: the same, but the first layers that fit are never given up, which nobody gets by default.
- demand: an arena of the same size, one blocking direct read for each part that is missing, LRU, no prefetch.
- tokenvm: the same share, streamed. all in memory: what neither can beat.

All must produce the same tokens.
"""

# ruff: noqa: T201 - it prints its findings
from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from output_options import add_output_options
from peers.kv_sources import KvFile, Mapped, MappedFixed, OnDemand

from tokenvm.bench.figures import paired_ratios, percentile, spread
from tokenvm.bench.report import Grid, Report, finish, machine
from tokenvm.bench.seed import Pages, add_seeded, random_pages
from tokenvm.bench.subject import WARM_STEPS, Paging, Subject, open_subject, read_prompt, request, turn
from tokenvm.config import MemoryConfig
from tokenvm.engine.launch import needs_of
from tokenvm.engine.runner import Runner
from tokenvm.kernels.paging import fill
from tokenvm.memory.cpu import AnonymousRegion
from tokenvm.schedule.plan import Plan, Span
from tokenvm.staging import Round, Staged
from tokenvm.vocab import SeqId


class NaiveStaged:
    """What the decoder asks of staged pages, over a source of parts and one open page in memory."""

    own = None

    def __init__(
        self, source: Mapped | OnDemand, open_page: int, file: KvFile, block: int, span: range
    ) -> None:
        self._source = source
        self._open = open_page
        self._file = file
        self.positions = np.arange(span.start, span.stop)
        self.offsets = (self.positions % block).astype(np.int32)

    def targets(self, layer: int) -> np.ndarray:
        """See `Staged.targets`."""
        return np.full(len(self.positions), self._open + layer * self._file.part_bytes, np.uint64)

    def rounds(self, layer: int) -> Iterator[tuple[Round, np.ndarray]]:
        """See `Staged.rounds`."""
        last = self._file.count, self._open + layer * self._file.part_bytes
        found: list[tuple[int, int]] = []
        for page in self._source.rounds(layer):
            if self._source.at_once:
                found.append(page)
            else:
                yield self._round([page])
        yield self._round([*found, last])
        self._source.used(layer)

    def _round(self, pages: list[tuple[int, int]]) -> tuple[Round, np.ndarray]:
        segments = np.array([[0, len(self.positions), 0, len(pages)]], np.int32)
        first = np.array([pages[0][0]], np.int32)
        return Round(segments, first, 0, slice(0, len(pages))), np.array([at for _, at in pages], np.uint64)


def naive_run(
    subject: Subject, file: KvFile, source: Mapped | OnDemand, ids: list[int], tokens: int
) -> tuple[list[int], list[float]]:
    """Go on from the file's pages with the rest of `ids`; return the tokens and the seconds of each decode step."""
    _, geometry = needs_of(subject.model, subject.settings)
    block = geometry.block_tokens
    start = file.count * block
    assert start + block >= len(ids) + tokens, "the answer has to stay in the open page"
    region = AnonymousRegion(file.layers * file.part_bytes)
    fill(region.address, region.nbytes, 0)
    model = Runner(subject.model, geometry, block, len(ids) + tokens)
    pending, produced, seconds = ids[start:], [], []
    while len(produced) < tokens:
        began_s = time.monotonic()
        staged = NaiveStaged(source, region.address, file, block, range(start, start + len(pending)))
        plan = Plan((Span(SeqId(0), start, len(pending), True),))
        token = int(model.run(plan, pending, cast(Staged, staged))[0].argmax())
        seconds.append(time.monotonic() - began_s)
        start += len(pending)
        pending = [token]
        produced.append(token)
    print(
        f"{source.title}: {source.resident_bytes() / 1e6:.0f} MB of KV in memory after the last step",
        flush=True,
    )
    source.close()
    return produced, seconds[1 + WARM_STEPS :]


def our_run(
    subject: Subject, pages: Pages, fraction: float, ids: list[int], tokens: int
) -> tuple[list[int], list[float]]:
    """Do the same with TokenVM."""
    with subject.engine(Paging(fraction), len(ids) + tokens) as engine:
        seq = add_seeded(engine, request(ids, tokens), pages)
        sequence = engine.scheduler.sequence(seq)
        read_prompt(engine)
        seconds = []
        while engine.has_work:
            began_s = time.monotonic()
            engine.step()
            seconds.append(time.monotonic() - began_s)
        return sequence.tokens[len(ids) :], seconds[WARM_STEPS:]


def one_round(
    subject: Subject, pages: Pages, file: KvFile, fraction: float, ids: list[int], tokens: int
) -> dict[str, tuple[list[int], list[float]]]:
    """Run all ways."""
    limit = subject.kv_bytes(len(ids) + tokens, fraction)
    found = {"all in memory": our_run(subject, pages, 1.0, ids, tokens)}
    found["tokenvm"] = our_run(subject, pages, fraction, ids, tokens)
    for kind in (Mapped, MappedFixed, OnDemand):
        found[kind.title] = naive_run(subject, file, kind(file, limit), ids, tokens)
    return found


def report(samples: list[dict[str, list[float]]], options: argparse.Namespace, limit: int) -> Report:
    """Put medians into a table."""
    ours = [statistics.median(sample["tokenvm"]) for sample in samples]
    rows = []
    for title in samples[0]:
        steps = [statistics.median(sample[title]) for sample in samples]
        rows.append(
            {
                "title": title,
                "p50_ms": spread([1000 * step for step in steps]),
                "p95_ms": 1000 * percentile([s for sample in samples for s in sample[title]], 0.95),
                "tokens_per_s": 1 / statistics.median(steps),
                "slower_than_tokenvm": paired_ratios(steps, ours),
            }
        )
    cells = [
        [
            row["title"],
            f"{row['tokens_per_s']:.1f}",
            f"{row['p50_ms'][1]:.1f}",
            f"{row['p95_ms']:.1f}",
            "{1:.2f} x ({0:.2f} to {2:.2f})".format(*row["slower_than_tokenvm"]),
        ]
        for row in rows
    ]
    note = (
        f"{options.context:,} tokens of context, {limit / 1e6:.0f} MB of KV memory ({100 * options.kv_fraction:g} %), "
        f"{len(samples)} rounds in turn; all produced the same tokens. No control group is used: the mapping's "
        "residency is held to the limit layer by layer, the layers used longest ago going first."
    )
    figures = {"bench": "naive", "kv_limit_bytes": limit, "rows": rows, "machine": machine()}
    names = ("paging", "tok/s", "p50 ms", "p95 ms", "a step takes, against tokenvm")
    return Report("naive", figures, [Grid(names, cells)], [note])


@contextmanager
def kv_file(subject: Subject, pages: Pages, count: int) -> Iterator[KvFile]:
    """Lend the file of the naive ways."""
    file = KvFile(subject.settings.disk_path, pages, count)
    try:
        yield file
    finally:
        file.close()


def main() -> None:
    """Measure all ways in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--context", type=int, default=8000)
    parser.add_argument("--kv-fraction", type=float, default=0.25)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    add_output_options(parser, "naive")
    options = parser.parse_args()
    subject = open_subject(options.model, "auto", MemoryConfig(), None)
    torch.set_num_threads(subject.threads)
    _, geometry = needs_of(subject.model, subject.settings)
    pages = random_pages(geometry, subject.model.spec.layers)
    ids = random.Random(0).choices(range(subject.model.spec.vocab_size), k=options.context)
    samples: list[dict[str, list[float]]] = []
    with kv_file(subject, pages, (options.context - 1) // geometry.block_tokens) as file:
        for number in range(options.rounds):
            with turn(options.lock):
                found = one_round(subject, pages, file, options.kv_fraction, ids, options.tokens)
            tokens: dict[str, Any] = {title: run[0] for title, run in found.items()}
            assert len({tuple(one) for one in tokens.values()}) == 1, f"they differ: {tokens}"
            samples.append({title: run[1] for title, run in found.items()})
            print(f"round {number + 1} of {options.rounds}", flush=True)
    limit = subject.kv_bytes(options.context + options.tokens, options.kv_fraction)
    result = report(samples, options, limit)
    finish(result, options.write, options.json)


if __name__ == "__main__":
    main()
