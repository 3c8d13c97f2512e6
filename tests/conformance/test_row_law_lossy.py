"""The row law under lossy formats: quantised earlier pages, the own page raw, the same bits however rows are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from tokenvm.kernels import attention, native, paging, reference
from tokenvm.kernels.paging import PartGeometry
from tokenvm.kernels.quantise import quantise
from tokenvm.kernels.state import AttentionState

FORMATS = ["int8", "fp8"]
DTYPES = [torch.bfloat16, torch.float32]
SHAPES = [((9, 3), 64, 64), ((4, 4), 32, 32), ((8, 1), 96, 16), ((2, 1), 50, 48)]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    level, threads = native.isa(), native.threads()
    yield
    native.set_isa(level)
    native.set_threads(threads)


class LossySequence:
    """A sequence of four full pages and an open one, with a query for every token."""

    def __init__(self, heads: tuple[int, int], geometry: PartGeometry) -> None:
        self.geometry, T = geometry, geometry.block_tokens
        self.tokens, self.pages = 4 * T + T // 2, 5
        source = torch.Generator().manual_seed(1)
        shape = (geometry.kv_heads, T, geometry.head_dim)
        self.raw = torch.zeros(self.pages, geometry.raw.part_bytes, dtype=torch.uint8)
        for page in self.raw:
            k, v = (torch.randn(shape, generator=source).to(geometry.dtype) for _ in range(2))
            paging.write_part(page.data_ptr(), geometry.raw, k, v)
        self.coded = torch.zeros(self.pages, geometry.part_bytes, dtype=torch.uint8)
        quantise(_addresses(self.raw[:4]), _addresses(self.coded[:4]), geometry)
        self.coded[4] = 0xFF  # an open page has nothing to show
        self.q = torch.randn(self.tokens, heads[0], geometry.head_dim, generator=source).to(geometry.dtype)

    def attend(self, begin: int, end: int, window: int, kernels: object = attention) -> torch.Tensor:
        """out and lse of the rows [begin, end): all pages quantised, then each row's own page raw."""
        T, state = self.geometry.block_tokens, AttentionState.empty(end - begin, *self.q.shape[1:])
        q, positions = self.q[begin:end].contiguous(), torch.arange(begin, end)
        rest = (self.geometry.head_dim**-0.5, window)
        earlier = np.array([[0, end - begin, 0, self.pages]], np.int32), np.zeros(1, np.int32)
        kernels.attend(state, q, positions, *earlier, _addresses(self.coded), self.geometry, *rest)
        own = np.arange(begin // T, (end - 1) // T + 1, dtype=np.int32)
        rows = np.stack([np.maximum(own * T, begin), np.minimum(own * T + T, end)], 1) - begin
        segments = np.column_stack([rows, own, np.ones_like(own)]).astype(np.int32)
        kernels.attend(state, q, positions, segments, own, _addresses(self.raw), self.geometry.raw, *rest)
        out, lse = state.finish(torch.float32)
        return torch.cat((out, lse[..., None]), dim=-1)


def _addresses(parts: torch.Tensor) -> np.ndarray:
    return np.array([part.data_ptr() for part in parts], dtype=np.uint64)


def same_everywhere(compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    results = []
    for level in native.isa_levels():
        for threads in (1, 2):
            native.set_isa(level)
            native.set_threads(threads)
            results.append(compute().view(torch.int32))
            assert torch.equal(results[0], results[-1]), f"{level} with {threads} threads differs"
    return results[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("window", [0, 37])
@pytest.mark.parametrize(("heads", "head_dim", "block_tokens"), SHAPES)
@pytest.mark.parametrize("kv_format", FORMATS)
def test_rows_alone_in_chunks_and_all_at_once(
    kv_format: str,
    heads: tuple[int, int],
    head_dim: int,
    block_tokens: int,
    window: int,
    dtype: torch.dtype,
) -> None:
    sequence = LossySequence(heads, PartGeometry(heads[1], head_dim, block_tokens, dtype, kv_format))
    whole = same_everywhere(lambda: sequence.attend(0, sequence.tokens, window))
    for row in (0, block_tokens - 1, block_tokens, 2 * block_tokens + 5, sequence.tokens - 1):
        alone = same_everywhere(lambda row=row: sequence.attend(row, row + 1, window))  # type: ignore[misc]
        assert torch.equal(alone, whole[row : row + 1])
    for step in (7, block_tokens, 2 * block_tokens + 3):
        cuts = range(0, sequence.tokens, step)
        chunks = [sequence.attend(at, min(at + step, sequence.tokens), window) for at in cuts]
        assert torch.equal(torch.cat(chunks).view(torch.int32), whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("window", [0, 37])
@pytest.mark.parametrize("kv_format", FORMATS)
def test_attention_agrees_with_the_reference(kv_format: str, window: int, dtype: torch.dtype) -> None:
    sequence = LossySequence((4, 2), PartGeometry(2, 64, 32, dtype, kv_format))
    for begin, end in ((0, 40), (100, sequence.tokens)):
        got, wanted = (sequence.attend(begin, end, window, kernels) for kernels in (attention, reference))
        torch.testing.assert_close(got, wanted, atol=1e-2 if dtype is torch.bfloat16 else 1e-5, rtol=1e-3)


def test_a_page_is_seen_raw_by_its_own_rows_and_quantised_by_later_ones() -> None:
    """The last row of a page, at the token that fills it, still sees it as it is."""
    geometry = PartGeometry(1, 32, 16, torch.bfloat16, "int8")
    sequence = LossySequence((1, 1), geometry)
    before = sequence.attend(0, sequence.tokens, 0)
    sequence.coded[1] = sequence.coded[0]
    changed = (sequence.attend(0, sequence.tokens, 0) != before).flatten(1).any(1)
    assert not changed[:32].any()
    assert changed[32:].all()
