"""A tape plays what the single calls compute, for any number of rows; StepAttention likewise."""

import numpy as np
import pytest
import torch

from tokenvm.kernels.attention import attend
from tokenvm.kernels.linear import linear, pack
from tokenvm.kernels.norm import add_rows, gelu_mul, norm_heads, rms_norm, silu_mul
from tokenvm.kernels.paging import PartGeometry, rope_append
from tokenvm.kernels.state import AttentionState
from tokenvm.kernels.step import StepAttention
from tokenvm.kernels.tape import Tape

CAPACITY, WIDTH, INNER = 9, 48, 32
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 5, CAPACITY])
def test_a_tape_gives_the_bits_of_the_single_calls(dtype, rows):
    g = torch.Generator().manual_seed(rows)
    hidden, norm = torch.randn(CAPACITY, WIDTH, generator=g), torch.randn(WIDTH, generator=g)
    square, both, down = (
        pack(torch.randn(n, k, generator=g).to(dtype))
        for n, k in ((WIDTH, WIDTH), (2 * INNER, WIDTH), (WIDTH, INNER))
    )
    normed, gated = torch.empty(CAPACITY, WIDTH, dtype=dtype), torch.empty(CAPACITY, INNER, dtype=dtype)
    product, played = torch.empty(CAPACITY, WIDTH), hidden.clone()
    tape = Tape(CAPACITY)
    tape.rms_norm(played, norm, 1e-5, normed)
    tape.linear(normed, square, product)
    tape.linear_silu_mul(normed, both, gated)
    tape.linear_add(gated, down, played)
    for buffer in (normed, product, gated):
        buffer.fill_(7.0)
    tape.play(rows)
    first = rms_norm(hidden[:rows], norm, 1e-5, dtype)
    inner = silu_mul(linear(first, both), dtype)
    assert torch.equal(product[:rows], linear(first, square))
    assert torch.equal(gated[:rows], inner)
    assert torch.equal(played, torch.cat((hidden[:rows] + linear(inner, down), hidden[rows:])))
    assert all(bool((buffer[rows:] == 7.0).all()) for buffer in (normed, product, gated))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, CAPACITY])
def test_what_other_families_need_is_played_likewise(dtype, rows):
    g = torch.Generator().manual_seed(rows)
    x, added, bias = (torch.randn(n, WIDTH, generator=g) for n in (CAPACITY, CAPACITY, 1))
    weight = torch.rand(8, generator=g)
    played, gated = x.clone(), torch.full((CAPACITY, WIDTH // 2), 7.0, dtype=dtype)
    tape = Tape(CAPACITY)
    tape.add_rows(played, bias[0])
    tape.norm_heads(played, 2, 3, weight, 1e-5)
    tape.add_rows(played, added)
    tape.gelu_mul(played, gated)
    tape.play(rows)
    first = norm_heads(add_rows(x[:rows].clone(), bias[0]).view(rows, 6, 8), 2, 3, weight, 1e-5)
    expected = add_rows(first.view(rows, WIDTH), added[:rows])
    assert torch.equal(played, torch.cat((expected, x[rows:])))
    assert torch.equal(gated[:rows], gelu_mul(expected, dtype))
    assert bool((gated[rows:] == 7.0).all())


def test_a_tape_refuses_what_does_not_fit():
    tape, x = Tape(4), torch.zeros(4, 8)
    with pytest.raises(ValueError, match=r"shape \(7,\)|shape \(8,\)"):
        tape.rms_norm(x, torch.ones(7), 1e-5, torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"shape \(4, 6\)"):
        tape.linear(x, pack(torch.ones(5, 6)), torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"shape \(4, 5\)"):
        tape.linear_add(x, pack(torch.ones(5, 8)), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="as many gates as ups"):
        tape.linear_silu_mul(x, pack(torch.ones(5, 8)), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="heads 3 to 5 of 2 are not among 8 columns"):
        tape.norm_heads(x, 3, 2, torch.ones(2), 1e-5)
    with pytest.raises(ValueError, match="added"):
        tape.add_rows(x, torch.zeros(5, 8))
    with pytest.raises(ValueError, match="gate_up"):
        tape.gelu_mul(x, torch.zeros(4, 5))
    for rows in (-1, 5):
        with pytest.raises(ValueError, match="do not fit buffers of 4"):
            tape.play(rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [0, 11])
def test_step_attention_gives_the_bits_of_the_single_calls(dtype, window):
    g = torch.Generator().manual_seed(window)
    geometry, q_heads, pages, rows = PartGeometry(2, 16, 16, dtype), 4, 3, 5
    angles = torch.randn(pages * 16, 16, generator=g)
    step = StepAttention(geometry, q_heads, 0.25, window, angles, rows + 2)
    positions = np.arange(30, 30 + rows)
    offsets = (positions % 16).astype(np.int32)
    segments, first = np.array([[0, rows, 0, pages]], np.int32), np.zeros(1, np.int32)
    arenas = [torch.randn(pages, geometry.part_bytes // dtype.itemsize, generator=g).to(dtype)]
    arenas.append(arenas[0].clone())
    parts = [
        (arena.data_ptr() + np.arange(pages) * geometry.part_bytes).astype(np.uint64) for arena in arenas
    ]
    for _ in range(2):  # the second layer starts from nothing again
        qkv = torch.randn(rows, (q_heads + 4) * 16, generator=g)
        step.begin(positions, offsets)
        step.append(qkv, parts[0][positions // 16])
        step.fold(segments, first, parts[0])
        found = torch.empty(rows, q_heads * 16, dtype=dtype)
        step.finish(found)
        where = torch.from_numpy(positions)
        q = rope_append(qkv, angles, where, parts[1][positions // 16], offsets, geometry, q_heads)
        state = AttentionState.empty(rows, q_heads, 16)
        attend(state, q, where, segments, first, parts[1], geometry, 0.25, window)
        assert torch.equal(found, state.finish(dtype)[0].view(rows, -1))
        assert torch.equal(arenas[0], arenas[1])


def test_step_attention_refuses_what_does_not_fit():
    geometry = PartGeometry(1, 16, 16, torch.float32)
    with pytest.raises(ValueError, match="do not share"):
        StepAttention(PartGeometry(2, 16, 16, torch.float32), 3, 1.0, 0, torch.zeros(4, 16), 2)
    step = StepAttention(geometry, 1, 1.0, 0, torch.zeros(4, 16), 2)
    with pytest.raises(ValueError, match="3 rows do not fit buffers of 2"):
        step.begin(np.arange(3), np.zeros(3, np.int32))
    step.begin(np.array([4]), np.zeros(1, np.int32))
    part = np.zeros(geometry.part_bytes, np.uint8)
    targets = np.array([part.ctypes.data], np.uint64)
    with pytest.raises(ValueError, match="position"):
        step.append(torch.zeros(1, 48), targets)
    with pytest.raises(ValueError, match="contiguous CPU tensor"):
        step.append(torch.zeros(2, 48), targets)
