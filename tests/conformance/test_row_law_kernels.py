"""The row law at the kernels: row count, chunks, batch-mates, threads and instruction set change no bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from tokenvm.kernels import attention, linear, native, norm, paging
from tokenvm.kernels.paging import PartGeometry
from tokenvm.kernels.state import AttentionState

DTYPES = [torch.bfloat16, torch.float32]
SETTINGS = [(level, threads) for level in native.isa_levels() for threads in (1, 2)]
CUTS = [[1] * 5 + [2, 3], [10], [4, 6], [9, 1]]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    level, threads = native.isa(), native.threads()
    yield
    native.set_isa(level)
    native.set_threads(threads)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same_everywhere(compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The result of `compute`, which must have the same bits at every level and number of threads."""
    results = []
    for level, threads in SETTINGS:
        native.set_isa(level)
        native.set_threads(threads)
        results.append((level, threads, compute()))
    for level, threads, result in results[1:]:
        assert torch.equal(bits(result), bits(results[0][2])), f"{level} with {threads} threads differs"
    return results[0][2]


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize(("outputs", "columns"), [(960, 576), (130, 100), (33, 31)])
def test_linear(outputs: int, columns: int, dtype: torch.dtype) -> None:
    w, x = linear.pack(random(outputs, columns, dtype=dtype)), random(83, columns, dtype=dtype, seed=1)
    whole = same_everywhere(lambda: linear.linear(x, w))
    for count in (1, 5, 16, 40):
        part = same_everywhere(lambda count=count: linear.linear(x[-count:].contiguous(), w))  # type: ignore[misc]
        assert torch.equal(bits(part), bits(whole[-count:]))


BORDERS = [15, 16, 17, 31, 32, 33, 64, 129, 255, 257, 300]


@pytest.mark.parametrize("count", BORDERS)
def test_row_counts_around_every_border(count: int) -> None:
    gates, down = linear.pack(random(192, 96).bfloat16()), linear.pack(random(80, 64).bfloat16())
    x, gated = random(300, 96, seed=1).bfloat16(), random(300, 64, seed=2).bfloat16()
    residual = random(300, 80, seed=3)

    def everything(begin: int, end: int) -> torch.Tensor:
        active = linear.linear_silu_mul(x[begin:end], gates, torch.float32)
        added = linear.linear_add(gated[begin:end], down, residual[begin:end].clone())
        return torch.cat((active, added, linear.linear(x[begin:end], gates)), dim=1)

    whole = everything(0, 300)
    part = same_everywhere(lambda: everything(300 - count, 300))
    assert torch.equal(bits(part), bits(whole[300 - count :]))


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize(("outputs", "columns"), [(192, 576), (96, 100), (66, 31)])
def test_products_with_an_epilogue(outputs: int, columns: int, dtype: torch.dtype) -> None:
    w, x = linear.pack(random(outputs, columns, dtype=dtype)), random(53, columns, dtype=dtype, seed=1)
    plain, residual = linear.linear(x, w), random(53, outputs, seed=2)
    active = same_everywhere(lambda: linear.linear_silu_mul(x, w, dtype))
    assert torch.equal(bits(active), bits(norm.silu_mul(plain, dtype)))
    added = same_everywhere(lambda: linear.linear_add(x, w, residual.clone()))
    assert torch.equal(bits(added), bits(residual + plain))


def test_linear_of_tiny_numbers() -> None:
    w = linear.pack((random(64, 64) * 1e-19).bfloat16())
    x = (random(20, 64, seed=1) * 2e-19).bfloat16()
    assert torch.equal(bits(same_everywhere(lambda: linear.linear(x, w))[:1]), bits(linear.linear(x[:1], w)))


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
def test_rowwise_kernels(dtype: torch.dtype) -> None:
    x, weight, gate_up = random(40, 330), random(330), random(40, 330) * 30
    normal = same_everywhere(lambda: norm.rms_norm(x, weight, 1e-5, dtype))
    active = same_everywhere(lambda: norm.silu_mul(gate_up, dtype))
    assert torch.equal(bits(norm.rms_norm(x[7:8], weight, 1e-5, dtype)), bits(normal[7:8]))
    assert torch.equal(bits(norm.silu_mul(gate_up[7:8], dtype)), bits(active[7:8]))
    assert torch.equal(same_everywhere(lambda: norm.cast(x, dtype)), x.to(dtype))
    curved = same_everywhere(lambda: norm.gelu_mul(gate_up, dtype))
    assert torch.equal(bits(norm.gelu_mul(gate_up[7:8], dtype)), bits(curved[7:8]))


def test_norm_heads_and_add_rows() -> None:
    x, weight, added = random(40, 6, 55), random(55), random(40, 330, seed=2)
    heads = same_everywhere(lambda: norm.norm_heads(x.clone(), 1, 4, weight, 1e-5))
    assert torch.equal(bits(norm.norm_heads(x[7:8].clone(), 1, 4, weight, 1e-5)), bits(heads[7:8]))
    summed = same_everywhere(lambda: norm.add_rows(x.view(40, 330).clone(), added))
    assert torch.equal(bits(summed), bits(x.view(40, 330) + added))


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("head_dim", [64, 50])
def test_rope_append_in_any_runs(head_dim: int, dtype: torch.dtype) -> None:
    geometry, rows = PartGeometry(2, head_dim, 32, dtype), 41
    qkv, cos_sin = random(rows, 7 * head_dim), random(80, head_dim, seed=1)
    positions = torch.arange(7, 7 + rows)
    page, offset = np.divmod(positions.numpy(), 32)

    def append(cut: list[int]) -> torch.Tensor:
        pages = torch.zeros(2, geometry.part_bytes, dtype=torch.uint8)
        parts = (pages.data_ptr() + page * geometry.part_bytes).astype(np.uint64)
        q, begin = [], 0
        for end in cut:
            at = slice(begin, end)
            place = parts[at], offset[at].astype(np.int32)
            q.append(paging.rope_append(qkv[at], cos_sin, positions[at], *place, geometry, 3).flatten())
            begin = end
        return torch.cat((*q, pages.view(dtype).flatten()))

    whole = same_everywhere(lambda: append([rows]))
    for cut in ([1, 2, 30, rows], [16, rows], list(range(1, rows + 1))):
        assert torch.equal(bits(append(cut)), bits(whole))


class Sequences:
    """Two sequences with pages of their own, and queries for some of their last tokens."""

    def __init__(self, heads: tuple[int, int], head_dim: int, block_tokens: int, dtype: torch.dtype) -> None:
        self.geometry = PartGeometry(heads[1], head_dim, block_tokens, dtype)
        self.q_heads, self.lengths = heads[0], (5 * block_tokens - 3, 2 * block_tokens + 1)
        self.pages = [-(-length // block_tokens) for length in self.lengths]
        arena = random(sum(self.pages), self.geometry.part_bytes // dtype.itemsize, dtype=dtype)
        self.arena, self.parts = arena, np.array([page.data_ptr() for page in arena], dtype=np.uint64)
        self.q = [random(10, heads[0], head_dim, dtype=dtype, seed=s + 1) for s in range(2)]

    def attend(self, s: int, begin: int, end: int, window: int, pages_a_call: int = 100) -> torch.Tensor:
        """Rows [begin, end) of the last ten of sequence s, alone in their batch."""
        return self.batch([(s, begin, end)], window, pages_a_call)

    def batch(self, runs: list[tuple[int, int, int]], window: int, pages_a_call: int = 100) -> torch.Tensor:
        """out and lse side by side, of several runs of rows in one batch."""
        q = torch.cat([self.q[s][begin:end] for s, begin, end in runs])
        positions = torch.cat([torch.arange(self.lengths[s] - 10, self.lengths[s])[b:e] for s, b, e in runs])
        state = AttentionState.empty(len(q), self.q_heads, self.geometry.head_dim)
        for page in range(0, max(self.pages), pages_a_call):
            segments, row = [], 0
            for s, begin, end in runs:
                count = max(0, min(pages_a_call, self.pages[s] - page))
                segments.append(
                    (row, row + end - begin, sum(self.pages[:s]) + min(page, self.pages[s]), count)
                )
                row += end - begin
            attention.attend(
                state,
                q,
                positions,
                np.array(segments, dtype=np.int32),
                np.full(len(runs), page, dtype=np.int32),
                self.parts,
                self.geometry,
                self.geometry.head_dim**-0.5,
                window,
            )
        out, lse = state.finish(torch.float32)
        return torch.cat((out, lse[..., None]), dim=-1)


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("window", [0, 37])
@pytest.mark.parametrize(
    ("heads", "head_dim", "block_tokens"),
    [((9, 3), 64, 64), ((4, 4), 32, 32), ((8, 1), 96, 16), ((2, 1), 50, 48)],
)
def test_attention(
    heads: tuple[int, int], head_dim: int, block_tokens: int, window: int, dtype: torch.dtype
) -> None:
    sequences = Sequences(heads, head_dim, block_tokens, dtype)
    whole = same_everywhere(lambda: sequences.attend(0, 0, 10, window))
    for cut in CUTS:
        ends = np.cumsum(cut).tolist()
        chunks = [sequences.attend(0, end - n, end, window) for n, end in zip(cut, ends, strict=True)]
        assert torch.equal(bits(torch.cat(chunks)), bits(whole))
    one = same_everywhere(lambda: sequences.attend(0, 6, 7, window))
    assert torch.equal(bits(one), bits(whole[6:7]))
    for pages in (1, 2):
        assert torch.equal(bits(sequences.attend(0, 0, 10, window, pages)), bits(whole))
    mixed = same_everywhere(lambda: sequences.batch([(1, 2, 9), (0, 6, 7), (0, 8, 10)], window, 2))
    assert torch.equal(bits(mixed[7:8]), bits(whole[6:7]))
    assert torch.equal(bits(mixed[8:]), bits(whole[8:]))
    assert torch.equal(bits(mixed[:7]), bits(sequences.attend(1, 2, 9, window)))


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
def test_many_rows_walk_the_pages_and_few_are_spread(dtype: torch.dtype) -> None:
    geometry, rows = PartGeometry(3, 64, 32, dtype), 700
    pages = -(-rows // 32)
    arena = random(pages, geometry.part_bytes // dtype.itemsize, dtype=dtype)
    parts = np.array([page.data_ptr() for page in arena], dtype=np.uint64)
    q, positions, first = (
        random(rows, 9, 64, dtype=dtype, seed=1),
        torch.arange(rows),
        np.zeros(1, dtype=np.int32),
    )

    def attend(begin: int, end: int) -> torch.Tensor:
        state = AttentionState.empty(end - begin, 9, 64)
        segments = np.array([[0, end - begin, 0, pages]], dtype=np.int32)
        attention.attend(state, q[begin:end], positions[begin:end], segments, first, parts, geometry, 0.125)
        return state.finish(torch.float32)[0]

    native.set_threads(2)
    whole = attend(0, rows)
    for begin, end in ((0, 1), (31, 33), (100, 260), (699, 700)):
        assert torch.equal(bits(attend(begin, end)), bits(whole[begin:end]))


def a_shape(seed: int) -> tuple[PartGeometry, int, int, int, int]:
    """A random part, query heads, tokens, rows and window; every second one has the shape that has code of its own."""
    rng = np.random.default_rng(seed)
    kv_heads, group = int(rng.integers(1, 3)), int(rng.integers(1, 5))
    head_dim = 64 if seed % 2 else int(rng.choice([32, 48, 64, 96, 128, 256]))
    block_tokens = int(rng.choice([64, 128])) if seed % 2 else int(rng.choice([16, 32, 48, 64, 128]))
    tokens = int(rng.integers(2 * block_tokens, 5 * block_tokens))
    rows = int(rng.integers(1, min(tokens, 70)))
    window = int(rng.integers(1, tokens)) if rng.integers(3) == 0 else 0
    return (
        PartGeometry(kv_heads, head_dim, block_tokens, torch.bfloat16),
        kv_heads * group,
        tokens,
        rows,
        window,
    )


@pytest.mark.parametrize("seed", range(12))
def test_attention_of_random_shapes(seed: int) -> None:
    geometry, q_heads, tokens, rows, window = a_shape(seed)
    pages = -(-tokens // geometry.block_tokens)
    arena = random(pages, geometry.part_bytes // 2, dtype=torch.bfloat16)
    parts = np.array([page.data_ptr() for page in arena], dtype=np.uint64)
    q = 3 * random(rows, q_heads, geometry.head_dim, dtype=torch.bfloat16, seed=1)

    def attend(begin: int, end: int) -> torch.Tensor:
        state = AttentionState.empty(end - begin, q_heads, geometry.head_dim)
        positions = torch.arange(tokens - rows + begin, tokens - rows + end)
        segments, first = np.array([[0, end - begin, 0, pages]], dtype=np.int32), np.zeros(1, dtype=np.int32)
        attention.attend(state, q[begin:end], positions, segments, first, parts, geometry, 0.3, window)
        out, lse = state.finish(torch.float32)
        return torch.cat((out, lse[..., None]), dim=-1)

    whole = same_everywhere(lambda: attend(0, rows))
    assert not whole.isnan().any()
    for begin, end in ((0, 1), (rows // 2, rows), (rows - 1, rows)):
        assert torch.equal(bits(attend(begin, end)), bits(whole[begin:end]))


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
def test_rope_append(dtype: torch.dtype) -> None:
    geometry = PartGeometry(2, 64, 32, dtype)
    qkv, cos_sin, positions = random(45, 8 * 64), random(64, 64), torch.arange(45)
    arena = torch.zeros(2, geometry.part_bytes, dtype=torch.uint8)
    parts = np.array([arena[p // 32].data_ptr() for p in range(45)], dtype=np.uint64)
    offsets = np.arange(45, dtype=np.int32) % 32

    def append(step: int) -> torch.Tensor:
        arena.zero_()
        qs = [
            paging.rope_append(
                qkv[i : i + step],
                cos_sin,
                positions[i : i + step],
                parts[i : i + step],
                offsets[i : i + step],
                geometry,
                4,
            )
            for i in range(0, 45, step)
        ]
        return torch.cat([torch.cat(qs).flatten().view(torch.uint8), arena.flatten()]).view(torch.int16)

    whole = same_everywhere(lambda: append(45))
    assert torch.equal(append(1), whole)
    assert torch.equal(append(7), whole)
