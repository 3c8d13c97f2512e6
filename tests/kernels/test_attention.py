"""Paged attention against the reference and against plain softmax, over odd sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tokenvm.kernels import attention, paging, reference
from tokenvm.kernels.paging import PartGeometry
from tokenvm.kernels.state import AttentionState, merge

# q heads, kv heads, head_dim, block_tokens, tokens in the cache, query rows, window
CASES = [
    (1, 1, 32, 16, 1, 1, 0),
    (9, 3, 64, 32, 101, 1, 0),
    (9, 3, 64, 32, 70, 70, 0),
    (4, 2, 96, 16, 37, 5, 0),
    (16, 16, 32, 32, 65, 12, 0),
    (6, 2, 80, 48, 90, 33, 20),
    (8, 1, 128, 64, 130, 9, 64),
    (3, 3, 34, 16, 40, 40, 7),
    (6, 2, 64, 128, 700, 60, 0),
    (12, 4, 64, 64, 500, 100, 300),
    (2, 1, 256, 32, 100, 20, 0),
    (64, 1, 64, 64, 300, 3, 0),
    (3, 3, 48, 48, 300, 33, 0),
]


@dataclass
class Cache:
    """Random keys and values of one sequence, in pages of its own."""

    geometry: PartGeometry
    k: torch.Tensor
    v: torch.Tensor
    pages: torch.Tensor
    parts: npt.NDArray[np.uint64]


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cache_of(geometry: PartGeometry, tokens: int) -> Cache:
    count = -(-tokens // geometry.block_tokens)
    shape = (geometry.kv_heads, count * geometry.block_tokens, geometry.head_dim)
    k, v = (random(*shape, dtype=geometry.dtype, seed=seed) for seed in (1, 2))
    pages = torch.zeros(count, geometry.part_bytes, dtype=torch.uint8)
    for page, (part_k, part_v) in enumerate(
        zip(k.split(geometry.block_tokens, 1), v.split(geometry.block_tokens, 1), strict=True)
    ):
        paging.write_part(pages[page].data_ptr(), geometry, part_k.contiguous(), part_v.contiguous())
    parts = np.array([page.data_ptr() for page in pages], dtype=np.uint64)
    return Cache(geometry, k, v, pages, parts)


def plain(cache: Cache, q: torch.Tensor, positions: torch.Tensor, window: int) -> torch.Tensor:
    group = q.shape[1] // cache.geometry.kv_heads
    k, v = cache.k.double().repeat_interleave(group, 0), cache.v.double().repeat_interleave(group, 0)
    scores = torch.einsum("mhd,htd->mht", q.double(), k) * q.shape[2] ** -0.5
    t = torch.arange(k.shape[1])
    hidden = t > positions[:, None]
    if window:
        hidden |= t <= positions[:, None] - window
    return torch.einsum("mht,htd->mhd", scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("case", CASES)
def test_attention_agrees_with_reference_and_softmax(case: tuple[int, ...], dtype: torch.dtype) -> None:
    q_heads, kv_heads, D, T, tokens, rows, window = case
    cache = cache_of(PartGeometry(kv_heads, D, T, dtype), tokens)
    q, positions = random(rows, q_heads, D, dtype=dtype), torch.arange(tokens - rows, tokens)
    segments, first = np.array([[0, rows, 0, len(cache.parts)]], dtype=np.int32), np.zeros(1, dtype=np.int32)
    states = [AttentionState.empty(rows, q_heads, D) for _ in range(2)]
    for state, attend in zip(states, (attention.attend, reference.attend), strict=True):
        attend(state, q, positions, segments, first, cache.parts, cache.geometry, D**-0.5, window)
    out, lse = states[0].finish(torch.float32)
    expected, expected_lse = reference.finish(states[1], torch.float32)
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out, expected, rtol=limit, atol=limit)
    torch.testing.assert_close(lse, expected_lse, rtol=limit, atol=limit)
    torch.testing.assert_close(
        out.double(), plain(cache, q, positions, window), rtol=2 * limit, atol=2 * limit
    )


def test_stale_bytes_past_the_length_change_no_bit() -> None:
    cache = cache_of(PartGeometry(2, 64, 32, torch.bfloat16), 40)
    outs = []
    for _ in range(2):
        state = AttentionState.empty(9, 4, 64)
        q, positions = random(9, 4, 64, dtype=torch.bfloat16), torch.arange(28, 37)
        segments, first = np.array([[0, 9, 0, 2]], dtype=np.int32), np.zeros(1, dtype=np.int32)
        attention.attend(state, q, positions, segments, first, cache.parts, cache.geometry, 0.125)
        outs.append(state.finish(torch.float32))
        k, v = paging.read_part(int(cache.parts[1]), cache.geometry)
        k[:, 5:], v[:, 5:] = 300.0, -7.0
        paging.write_part(int(cache.parts[1]), cache.geometry, k, v)
    assert torch.equal(outs[0][0], outs[1][0])
    assert torch.equal(outs[0][1], outs[1][1])


def test_a_row_that_sees_nothing_stays_empty() -> None:
    cache = cache_of(PartGeometry(1, 32, 16, torch.float32), 16)
    state, q = AttentionState.empty(2, 1, 32), random(2, 1, 32, dtype=torch.float32)
    segments, first = np.array([[0, 1, 0, 1], [1, 2, 0, 0]], dtype=np.int32), np.array([5, 0], dtype=np.int32)
    attention.attend(state, q, torch.tensor([3, 3]), segments, first, cache.parts, cache.geometry, 1.0)
    out, lse = state.finish(torch.bfloat16)
    assert out.abs().max() == 0
    assert lse.isneginf().all()


def test_merge_of_two_runs_of_pages_is_attention_over_both() -> None:
    cache = cache_of(PartGeometry(1, 32, 16, torch.float32), 64)
    q, positions, first = (
        random(1, 2, 32, dtype=torch.float32),
        torch.tensor([63]),
        np.zeros(1, dtype=np.int32),
    )
    finished = []
    for begin, count in ((0, 4), (0, 1), (1, 3), (4, 0)):
        state, segments = AttentionState.empty(1, 2, 32), np.array([[0, 1, begin, count]], dtype=np.int32)
        attention.attend(state, q, positions, segments, first + begin, cache.parts, cache.geometry, 0.2)
        finished.append(state.finish(torch.float32))
    both = merge(merge(finished[1], finished[3]), finished[2])
    torch.testing.assert_close(both, finished[0], rtol=1e-5, atol=1e-6)
    empty = merge(finished[3], finished[3])
    assert empty[1].isneginf().all()
    assert torch.equal(empty[0], torch.zeros_like(empty[0]))


def test_reset_makes_rows_empty_again() -> None:
    state = AttentionState(torch.ones(3, 1, 2), torch.ones(3, 1), torch.ones(3, 1))
    state.reset(2)
    out, lse = state.finish(torch.float32)
    assert out[:, 0, 0].tolist() == [0.0, 0.0, 1.0]
    assert lse[:, 0].tolist() == [-torch.inf, -torch.inf, 1.0]


@pytest.mark.parametrize(
    "segments",
    [
        [[0, 3, 0, 1]],
        [[-1, 2, 0, 1]],
        [[0, 2, 0, 2]],
        [[0, 2, -1, 1]],
        [[0, 2, 0, 1], [1, 2, 0, 1]],
        [[2, 1, 0, 1]],
    ],
)
def test_segments_outside_their_arrays_are_refused(segments: list[list[int]]) -> None:
    cache = cache_of(PartGeometry(1, 32, 16, torch.float32), 16)
    state, q = AttentionState.empty(2, 1, 32), random(2, 1, 32, dtype=torch.float32)
    first = np.zeros(len(segments), dtype=np.int32)
    with pytest.raises(ValueError, match="segment"):
        attention.attend(
            state,
            q,
            torch.tensor([3, 4]),
            np.array(segments, dtype=np.int32),
            first,
            cache.parts,
            cache.geometry,
            1.0,
        )


def test_shapes_that_do_not_fit_are_refused() -> None:
    cache = cache_of(PartGeometry(2, 32, 16, torch.float32), 16)
    segments, first = np.array([[0, 1, 0, 1]], dtype=np.int32), np.zeros(1, dtype=np.int32)
    call = (torch.tensor([3]), segments, first, cache.parts, cache.geometry)
    with pytest.raises(ValueError, match="kv heads evenly"):
        attention.attend(AttentionState.empty(1, 3, 32), torch.zeros(1, 3, 32), *call, 1.0)
    with pytest.raises(ValueError, match="head_dim"):
        attention.attend(AttentionState.empty(1, 2, 30), torch.zeros(1, 2, 30), *call, 1.0)
    with pytest.raises(ValueError, match="scale"):
        attention.attend(AttentionState.empty(1, 2, 32), torch.zeros(1, 2, 32), *call, 0.0)
    with pytest.raises(ValueError, match="q must"):
        attention.attend(AttentionState.empty(1, 2, 32), torch.zeros(1, 2, 32).bfloat16(), *call, 1.0)
