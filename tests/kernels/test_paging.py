"""Parts: their geometry and order, and rope with append against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenvm.kernels import paging, reference
from tokenvm.kernels.paging import PartGeometry

GEOMETRIES = [(1, 32, 16), (3, 64, 32), (2, 80, 48), (5, 34, 16), (2, 128, 64)]
DTYPES = [torch.bfloat16, torch.float32]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def part_for(geometry: PartGeometry) -> torch.Tensor:
    return torch.zeros(geometry.part_bytes, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("sizes", GEOMETRIES)
def test_a_part_reads_back_what_was_written(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    geometry = PartGeometry(*sizes, dtype)
    shape = (sizes[0], sizes[2], sizes[1])
    k, v, part, twin = (
        random(*shape).to(dtype),
        -random(*shape).to(dtype),
        part_for(geometry),
        part_for(geometry),
    )
    paging.write_part(part.data_ptr(), geometry, k, v)
    reference.write_part(twin.data_ptr(), geometry, k, v)
    assert torch.equal(part, twin)
    for read in (paging.read_part, reference.read_part):
        assert all(torch.equal(a, b) for a, b in zip(read(part.data_ptr(), geometry), (k, v), strict=True))


def test_the_order_of_a_part() -> None:
    geometry = PartGeometry(1, 4, 16, torch.bfloat16)
    part = part_for(geometry)
    k, v = torch.zeros(1, 16, 4).bfloat16(), torch.zeros(1, 16, 4).bfloat16()
    k[0, 5, 3], v[0, 5, 3] = 1.0, 2.0
    paging.write_part(part.data_ptr(), geometry, k, v)
    elements = part.view(torch.bfloat16)
    assert elements[1 * 32 + 5 * 2 + 1] == 1.0
    assert elements[64 + 2 * 8 + 3 * 2 + 1] == 2.0


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("sizes", GEOMETRIES)
def test_rope_append_agrees_with_reference(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    geometry, q_heads, rows = PartGeometry(*sizes, dtype), 2 * sizes[0], 21
    qkv, cos_sin = random(rows, 4 * sizes[0] * sizes[1]), random(40, sizes[1])
    positions = torch.arange(rows) + 3
    results = []
    for append in (paging.rope_append, reference.rope_append):
        pages = [part_for(geometry) for _ in range(3)]
        page, offset = np.divmod(positions.numpy(), sizes[2])
        parts = np.array([pages[i].data_ptr() for i in page], dtype=np.uint64)
        q = append(qkv, cos_sin, positions, parts, offset.astype(np.int32), geometry, q_heads)
        results.append((q, torch.cat(pages)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
def test_rows_of_one_batch_go_anywhere(dtype: torch.dtype) -> None:
    geometry = PartGeometry(2, 34, 48, dtype)
    runs = [(0, 5, 20), (1, 0, 17), (0, 25, 23), (2, 47, 1), (1, 30, 2), (1, 18, 1), (2, 3, 4)]
    page = np.concatenate([np.full(count, page) for page, _, count in runs])
    offset = np.concatenate([np.arange(first, first + count) for _, first, count in runs]).astype(np.int32)
    rows = len(page)
    qkv, cos_sin = random(rows, 7 * 34), random(100, 34)
    positions, results = torch.arange(rows).flip(0), []
    for append in (paging.rope_append, reference.rope_append):
        pages = [part_for(geometry) + 1 for _ in range(3)]
        parts = np.array([pages[i].data_ptr() for i in page], dtype=np.uint64)
        results.append((append(qkv, cos_sin, positions, parts, offset, geometry, 3), torch.cat(pages)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_rope_turns_by_the_angle() -> None:
    geometry, part = PartGeometry(1, 2, 16, torch.float32), torch.zeros(64)
    cos_sin = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    qkv = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    place = np.array([part.data_ptr()], dtype=np.uint64), np.array([7], dtype=np.int32)
    q = paging.rope_append(qkv, cos_sin, torch.tensor([1]), *place, geometry, 1)
    k, v = paging.read_part(part.data_ptr(), geometry)
    assert q.tolist() == [[[-2.0, 1.0]]]
    assert k[0, 7].tolist() == [-4.0, 3.0]
    assert v[0, 7].tolist() == [5.0, 6.0]


@pytest.mark.parametrize(
    ("position", "offset", "lost"), [(2, 0, False), (-1, 0, False), (0, 16, False), (0, 0, True)]
)
def test_a_token_outside_its_page_is_refused(position: int, offset: int, lost: bool) -> None:
    geometry, part = PartGeometry(1, 2, 16, torch.float32), torch.zeros(64)
    place = np.array([0 if lost else part.data_ptr()], dtype=np.uint64), np.array([offset], dtype=np.int32)
    with pytest.raises(ValueError):
        paging.rope_append(
            torch.zeros(1, 6), torch.zeros(2, 2), torch.tensor([position]), *place, geometry, 1
        )


def test_fill_and_copy() -> None:
    a, b = torch.zeros(100, dtype=torch.uint8), torch.zeros(100, dtype=torch.uint8)
    paging.fill(a.data_ptr(), 90, 7)
    paging.copy(b.data_ptr() + 10, a.data_ptr() + 10, 90)
    assert a.tolist() == [7] * 90 + [0] * 10
    assert b.tolist() == [0] * 10 + [7] * 80 + [0] * 10


@pytest.mark.parametrize("sizes", [(0, 64, 16), (1, 63, 16), (1, 0, 16), (1, 64, 8), (1, 64, 24)])
def test_a_geometry_the_kernels_cannot_hold_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError):
        PartGeometry(*sizes, torch.bfloat16)


def test_geometry_of_smollm2() -> None:
    geometry = PartGeometry(3, 64, 128, torch.bfloat16)
    assert (geometry.part_bytes, geometry.layout_id) == (98304, "kv-k32-1")
    with pytest.raises(ValueError, match="float16"):
        PartGeometry(3, 64, 128, torch.float16)
