"""Quick figures for the kernels on SmolLM2-135M's shapes.

Prints the best and the median of several rounds, and the memory bandwidth of a plain read in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from tokenvm.kernels import attention, linear, native, paging, peak
from tokenvm.kernels.state import AttentionState
from tokenvm.kernels.weight_memory import WeightMemory

LAYERS, HIDDEN, INNER, VOCABULARY, Q_HEADS, KV_HEADS, HEAD_DIM = 30, 576, 1536, 49152, 9, 3, 64
SHAPES = ((960, HIDDEN), (HIDDEN, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER))


def say(line: str) -> None:
    """One line of the card."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def timed(name: str, work: Callable[[], object], rounds: int, note: Callable[[float], str]) -> None:
    """Run `work` some rounds and print one line."""
    work()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    best, middle = min(seconds), statistics.median(seconds)
    say(f"{name:46} best {best * 1e3:8.2f} ms  median {middle * 1e3:8.2f} ms  {note(best)}")


def read_bandwidth() -> None:
    """A plain read of 1 GiB by torch, all threads."""
    data = torch.ones(1 << 27, dtype=torch.float64)
    timed("read 1 GiB (torch sum)", data.sum, 5, lambda s: f"{data.nbytes / s / 1e9:.1f} GB/s")


def seconds_of(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def matrices(rows: int, rounds: int) -> None:
    """All matrices of the model once, in turn with a plain read of the same bytes and the processor's peak."""
    shapes, memory = [*SHAPES * LAYERS, (VOCABULARY, HIDDEN)], WeightMemory()
    packed = [linear.pack(torch.randn(n, k).bfloat16(), memory) for n, k in shapes]
    inputs = {k: torch.randn(rows, k).bfloat16() for k in (HIDDEN, INNER)}
    outputs = {n: torch.zeros(rows, n) for n, _ in shapes}
    gated = torch.empty(rows, INNER, dtype=torch.bfloat16)
    flops, operations = sum(2 * rows * n * k for n, k in shapes), 0

    def step() -> None:
        for w in packed:
            if w.rows == 2 * INNER:
                linear.linear_silu_mul(inputs[w.columns], w, torch.bfloat16, gated)
            elif w.rows == HIDDEN:
                linear.linear_add(inputs[w.columns], w, outputs[w.rows])
            else:
                linear.linear(inputs[w.columns], w, outputs[w.rows])

    def read() -> None:
        for w in packed:
            peak.read_all(w.storage.data_ptr(), w.nbytes)

    def compute() -> None:
        nonlocal operations
        operations = peak.run_peak(20000)

    works = (step, read, compute)
    for work in works:
        work()
    times = [[seconds_of(work) for work in works] for _ in range(rounds)]
    took, read_s, peak_s = (statistics.median(column) for column in zip(*times, strict=True))
    say(
        f"matrices, M = {rows:<4} median {took * 1e3:8.2f} ms  {took / read_s:5.2f} x reading ({read_s * 1e3:.2f} ms)  "
        f"{flops / took / 1e12:.2f} of {operations / peak_s / 1e12:.2f} TFLOP/s"
    )


def attention_layers(name: str, tokens: int, rows: int, layers: int, rounds: int, block_tokens: int) -> None:
    """Attention of the last `rows` of `tokens` tokens, every layer with pages of its own."""
    geometry = paging.PartGeometry(KV_HEADS, HEAD_DIM, block_tokens, torch.bfloat16)
    pages = -(-tokens // block_tokens)
    arena = torch.randn(layers, pages, geometry.part_bytes // 2).bfloat16()
    parts = (
        arena.data_ptr()
        + np.arange(layers * pages, dtype=np.uint64).reshape(layers, pages) * geometry.part_bytes
    )
    parts = np.ascontiguousarray(parts, dtype=np.uint64)
    q = torch.randn(rows, Q_HEADS, HEAD_DIM).bfloat16()
    positions = torch.arange(tokens - rows, tokens)
    segments = np.array([[0, rows, 0, pages]], dtype=np.int32)
    first = np.zeros(1, dtype=np.int32)
    state = AttentionState.empty(rows, Q_HEADS, HEAD_DIM)

    def step() -> None:
        for layer in range(layers):
            state.reset(rows)
            attention.attend(state, q, positions, segments, first, parts[layer], geometry, HEAD_DIM**-0.5)

    pairs = rows * tokens - rows * (rows - 1) // 2
    flops, read = 4 * pairs * Q_HEADS * HEAD_DIM * layers, layers * pages * geometry.part_bytes
    timed(name, step, rounds, lambda s: f"{read / s / 1e9:.1f} GB/s of KV  {flops / s / 1e12:.2f} TFLOP/s")


def prefill_attention(tokens: int, chunk: int, rounds: int, block_tokens: int) -> None:
    """Causal attention of a whole prompt in chunks: one layer, its time times the number of layers."""
    geometry = paging.PartGeometry(KV_HEADS, HEAD_DIM, block_tokens, torch.bfloat16)
    arena = torch.randn(-(-tokens // block_tokens), geometry.part_bytes // 2).bfloat16()
    parts = np.array([part.data_ptr() for part in arena], dtype=np.uint64)
    q, first = torch.randn(chunk, Q_HEADS, HEAD_DIM).bfloat16(), np.zeros(1, dtype=np.int32)
    state = AttentionState.empty(chunk, Q_HEADS, HEAD_DIM)

    def layer() -> None:
        for start in range(0, tokens, chunk):
            rows = min(chunk, tokens - start)
            view = AttentionState(state.acc[:rows], state.peak[:rows], state.mass[:rows])
            view.reset(rows)
            segments = np.array([[0, rows, 0, -(-(start + rows) // block_tokens)]], dtype=np.int32)
            positions = torch.arange(start, start + rows)
            attention.attend(view, q[:rows], positions, segments, first, parts, geometry, HEAD_DIM**-0.5)

    flops = 4 * tokens * (tokens + 1) // 2 * Q_HEADS * HEAD_DIM
    name = f"prefill attention, {tokens:,} tokens by {chunk}, 1 layer"
    timed(
        name,
        layer,
        rounds,
        lambda s: f"{flops / s / 1e12:.2f} TFLOP/s  {s * LAYERS:.2f} s for {LAYERS} layers",
    )


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=native.threads())
    parser.add_argument("--isa", default=native.isa(), choices=native.isa_levels())
    parser.add_argument("--block-tokens", type=int, default=128)
    options = parser.parse_args()
    native.set_isa(options.isa)
    native.set_threads(options.threads)
    torch.set_num_threads(options.threads)
    say(f"{options.isa}, {options.threads} threads, pages of {options.block_tokens} tokens")
    read_bandwidth()
    for rows, rounds in ((1, 25), (16, 25), (64, 15), (256, 7), (512, 7)):
        matrices(rows, rounds)
    block = options.block_tokens
    attention_layers("decode attention, 8,000 tokens, 30 layers", 8000, 1, LAYERS, 15, block)
    attention_layers("prefill attention, 512 rows of 6,000, 4 layers", 6000, 512, 4, 4, block)
    prefill_attention(8000, 512, 4, block)


if __name__ == "__main__":
    main()
