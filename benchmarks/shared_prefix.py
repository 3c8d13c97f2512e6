"""Attention of decode steps whose sequences share a prefix, on SmolLM2-135M's shapes: each alone, and as one group.

Both ways run in turn in every round; the card shows medians (and the least) of 30 layers, each with pages of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tokenvm.kernels import native, paging, peak
from tokenvm.kernels.attention import attend
from tokenvm.kernels.state import AttentionState
from tokenvm.kernels.weight_memory import WeightMemory
from tokenvm.residency.sharing import order_of, runs_of
from tokenvm.vocab import UnitId

LAYERS, Q_HEADS, KV_HEADS, HEAD_DIM = 30, 9, 3, 64
CASES = ((64, 1024, 48), (64, 0, 192), (16, 1024, 48), (8, 256, 200), (2, 128, 200), (2, 1024, 200))


@dataclass(frozen=True)
class Work:
    """Segments of one call, and what they read and multiply in a layer."""

    segments: NDArray[np.int32]
    first_page: NDArray[np.int32]
    pages: int
    read_tokens: int


class Batch:
    """Sequences of one decode step: `shared` tokens in common, `own` of each."""

    def __init__(self, sequences: int, shared: int, own: int, block_tokens: int) -> None:
        self.sequences, self.tokens = sequences, shared + own
        self.geometry = paging.PartGeometry(KV_HEADS, HEAD_DIM, block_tokens, torch.bfloat16)
        common, each = shared // block_tokens, -(-own // block_tokens)
        count = common + sequences * each
        stride = self.geometry.part_bytes
        self.arena = WeightMemory().take(LAYERS * count * stride).view(torch.bfloat16)
        self.arena.normal_()
        places = np.arange(LAYERS * count, dtype=np.uint64).reshape(LAYERS, count)
        self.addresses = self.arena.data_ptr() + places * np.uint64(stride)
        self.pages = [
            [UnitId(page) for page in (*range(common), *range(first, first + each))]
            for first in range(common, count, each)
        ]
        self.q = torch.randn(sequences, Q_HEADS, HEAD_DIM).bfloat16()
        self.positions = torch.full((sequences,), self.tokens - 1)
        self.state = AttentionState.empty(sequences, Q_HEADS, HEAD_DIM)

    def work(self, grouped: bool) -> tuple[Work, NDArray[np.uint64]]:
        """Segments, and the parts they name in every layer."""
        assert order_of(self.pages) == list(range(self.sequences))
        runs = [(at, at + 1, 0, len(pages)) for at, pages in enumerate(self.pages)]
        if grouped:
            runs = [(run.begin, run.end, run.first_page, run.page_count) for run in runs_of(self.pages)]
        segments, first, units = [], [], []
        for begin, end, page, count in runs:
            segments.append((begin, end, len(units), count))
            first.append(page)
            units += self.pages[begin][page : page + count]
        read = len(set(units)) * self.geometry.block_tokens
        work = Work(np.array(segments, np.int32), np.array(first, np.int32), len(units), read)
        return work, np.ascontiguousarray(self.addresses[:, units])

    def layer(self, work: Work, parts: NDArray[np.uint64]) -> None:
        """Attention of one layer."""
        self.state.reset(self.sequences)
        rest = (parts, self.geometry, HEAD_DIM**-0.5)
        attend(self.state, self.q, self.positions, work.segments, work.first_page, *rest)

    def read_all(self) -> None:
        """Read every page of every layer once, and do nothing with it."""
        peak.read_all(self.arena.data_ptr(), self.arena.nbytes)


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(case: tuple[int, int, int], block_tokens: int, rounds: int) -> None:
    """Print one line: both ways, in turn."""
    batch = Batch(*case, block_tokens)
    ways = [batch.work(grouped) for grouped in (False, True)]

    def step(way: tuple[Work, NDArray[np.uint64]]) -> None:
        for layer in range(LAYERS):
            batch.layer(way[0], way[1][layer])

    outs = []
    for way in ways:
        step(way)
        outs.append(batch.state.finish(torch.float32)[0])
    assert torch.equal(*outs), "grouping changed a bit"
    works = [lambda way=way: step(way) for way in ways] + [batch.read_all]
    times = [[seconds_of(work) for work in works] for _ in range(rounds)]
    (alone, least_alone), (group, least_group), (read_s, _) = (
        (statistics.median(column), min(column)) for column in zip(*times, strict=True)
    )
    flops = 4 * batch.sequences * batch.tokens * Q_HEADS * HEAD_DIM * LAYERS
    read = ways[1][0].read_tokens * 4 * KV_HEADS * HEAD_DIM * LAYERS
    sequences, shared, own = case
    sys.stdout.write(
        f"{sequences:3} x ({shared:5,} shared + {own:3} own)  alone {alone * 1e3:7.2f} ms ({least_alone * 1e3:.2f})  "
        f"grouped {group * 1e3:7.2f} ms ({least_group * 1e3:.2f})  {alone / group:5.2f} x  "
        f"{read / group / 1e9:5.1f} GB/s  {flops / group / 1e12:.2f} TFLOP/s  "
        f"all pages read in {read_s * 1e3:.2f} ms\n"
    )
    sys.stdout.flush()


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=native.threads())
    parser.add_argument("--isa", default=native.isa(), choices=native.isa_levels())
    parser.add_argument("--block-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--case", type=int, nargs=3, action="append", help="sequences, shared tokens, own tokens"
    )
    options = parser.parse_args()
    native.set_isa(options.isa)
    native.set_threads(options.threads)
    torch.set_num_threads(1)
    for case in options.case or CASES:
        compare(tuple(case), options.block_tokens, options.rounds)


if __name__ == "__main__":
    main()
