"""Lossy KV formats obey the row law: limits, chunks, batches, threads and lost pages change no bit."""

from functools import cache
from pathlib import Path

import pytest
import torch
from fixtures_engine import (
    BLOCK_TOKENS,
    Lasting,
    Said,
    assert_spilled,
    greedy,
    kv_limit_for,
    prompt,
    running,
    speak,
    tiny_model,
    used_slots,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenvm.errors import LimitTooSmall, StorageError
from tokenvm.memory.sim import SimDevice
from tokenvm.schedule.request import Request

FORMATS = ["int8", "fp8"]
DTYPES = [torch.bfloat16, torch.float32]
LENGTHS = (70, 129, 33, 16)
TOKENS = 20


@cache
def alone(length: int, kv_format: str, dtype: torch.dtype = torch.bfloat16, tokens: int = TOKENS) -> Said:
    """What a prompt says alone, with all its pages in memory and the whole prompt in one chunk."""
    with running(
        tiny_model(dtype), Path("unused"), max_tokens_per_forward=512, kv_cache_dtype=kv_format
    ) as engine:
        (said,) = speak(engine, [prompt(length)], tokens)
        assert engine.stats()["streamed_pages"] == 0
    return said


def all_alone(kv_format: str, dtype: torch.dtype = torch.bfloat16) -> list[Said]:
    return [alone(length, kv_format, dtype) for length in LENGTHS]


@pytest.mark.parametrize("kv_format", FORMATS)
def test_a_lossy_format_says_something_near_but_not_the_same(kv_format: str) -> None:
    with running(tiny_model(), Path("unused")) as engine:
        (exact,) = speak(engine, [prompt(129)], 1)
    lossy = alone(129, kv_format, tokens=1)
    a, b = (torch.frombuffer(bytearray(said.rows[0]), dtype=torch.float32) for said in (exact, lossy))
    assert not torch.equal(a, b)
    assert (a - b).norm() < (0.05 if kv_format == "int8" else 0.2) * a.norm()


@pytest.mark.parametrize("kv_format", FORMATS)
def test_the_first_page_is_read_raw(kv_format: str) -> None:
    """Rows of the first page see no other page, so they say what they say without a format."""
    with running(tiny_model(), Path("unused")) as engine:
        assert speak(engine, [prompt(9)], 7) == [alone(9, kv_format, tokens=7)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 7, 16, 17, 48])
@pytest.mark.parametrize("kv_format", FORMATS)
def test_chunks_of_prefill(kv_format: str, chunk: int, dtype: torch.dtype, tmp_path: Path) -> None:
    model, lossy = tiny_model(dtype), {"kv_cache_dtype": kv_format}
    with running(model, tmp_path, max_tokens_per_forward=chunk, **lossy) as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == all_alone(kv_format, dtype)
    with running(model, tmp_path, device_pages=9, max_tokens_per_forward=chunk, **lossy) as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == all_alone(kv_format, dtype)
        assert_spilled(engine, model, 9, **lossy)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device_pages", [5, 6, 8, 13])
@pytest.mark.parametrize("kv_format", FORMATS)
def test_sequences_together_under_a_limit(
    kv_format: str, device_pages: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, lossy = tiny_model(dtype), {"kv_cache_dtype": kv_format}
    with running(model, tmp_path, device_pages=device_pages, **lossy) as engine:
        said = speak(engine, [prompt(length) for length in LENGTHS], TOKENS, every_steps=3)
        assert_spilled(engine, model, device_pages, **lossy)
        assert used_slots(engine) == [0, 0, 0]
    assert said == all_alone(kv_format, dtype)


@pytest.mark.parametrize(("dtype", "device_pages"), [(torch.bfloat16, 3), (torch.float32, 5)])
def test_the_smallest_device(dtype: torch.dtype, device_pages: int, tmp_path: Path) -> None:
    """An open page, its raw slots and a spare one: the least that a limit may give, and it is enough."""
    model = tiny_model(dtype)
    with running(model, tmp_path, device_pages=device_pages, kv_cache_dtype="int8") as engine:
        said = speak(engine, [prompt(length) for length in LENGTHS], TOKENS)
        assert_spilled(engine, model, device_pages, kv_cache_dtype="int8")
    assert said == all_alone("int8", dtype)
    with pytest.raises(LimitTooSmall) as caught, running(model, tmp_path, kv_limit=1, kv_cache_dtype="int8"):
        pass
    assert caught.value.minimum_bytes <= kv_limit_for(model, device_pages, "int8")
    with (
        pytest.raises(LimitTooSmall, match=f"{device_pages} pages"),
        running(model, tmp_path, kv_limit=caught.value.minimum_bytes - 1, kv_cache_dtype="int8"),
    ):
        pass


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize(
    ("host_pages", "disk_pages"), [(64, 0), (6, 64)], ids=["host alone", "host, then disk"]
)
def test_the_host_tier(host_pages: int, disk_pages: int, kv_format: str, tmp_path: Path) -> None:
    model, lossy = tiny_model(), {"kv_cache_dtype": kv_format}
    with running(
        model, tmp_path, device_pages=9, host_pages=host_pages, disk_pages=disk_pages, **lossy
    ) as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == all_alone(kv_format)
        assert_spilled(engine, model, 9, host=True, disk=disk_pages > 0, **lossy)


@pytest.mark.parametrize("kv_format", FORMATS)
def test_two_compute_threads(kv_format: str, tmp_path: Path) -> None:
    model, lossy = tiny_model(), {"kv_cache_dtype": kv_format}
    with running(model, tmp_path, device_pages=9, threads=2, **lossy) as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == all_alone(kv_format)
        assert_spilled(engine, model, 9, **lossy)


@pytest.mark.parametrize("seed", range(3))
def test_copies_that_land_in_any_order(seed: int, tmp_path: Path) -> None:
    device = SimDevice(seed)
    with running(tiny_model(), tmp_path, device_pages=5, backend=device, kv_cache_dtype="int8") as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == all_alone("int8")
        assert engine.stats()["streamed_pages"] > 0
    assert device.counters.out_of_order > 0


@pytest.mark.parametrize("seed", range(3))
def test_pages_that_are_lost_are_computed_again(seed: int, tmp_path: Path) -> None:
    device, reads = SimDevice(seed), 0

    def now_and_then(copy: object) -> bool:
        nonlocal reads
        reads += copy.kind == 0
        return copy.kind == 0 and reads % 61 == 0

    device.fail_when(Lasting(now_and_then))
    with running(tiny_model(), tmp_path, device_pages=6, backend=device, kv_cache_dtype="fp8") as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == all_alone("fp8")
        assert engine.account.lost_pages > 0


@pytest.mark.parametrize("steps", [3, 9])
def test_a_step_that_failed_is_done_again(steps: int, tmp_path: Path) -> None:
    """Raw bytes stay until the commit, so a page that was filled and quantised in vain is filled once more."""
    with running(
        tiny_model(), tmp_path, device_pages=9, max_tokens_per_forward=23, kv_cache_dtype="int8"
    ) as engine:
        sample, count = engine._sample, 0

        def failing(*args: object) -> object:
            nonlocal count
            count += 1
            if count % steps == 0:
                raise StorageError("in the middle")
            return sample(*args)

        engine._sample = failing
        step = engine.step

        def stubborn() -> object:
            try:
                return step()
            except StorageError:
                engine.kvcache.check()
                return stubborn()

        engine.step = stubborn
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == all_alone("int8")
    assert count > 2 * steps


def test_a_fork_goes_on_with_raw_bytes_of_its_own(tmp_path: Path) -> None:
    with running(tiny_model(), tmp_path, device_pages=20, kv_cache_dtype="int8") as engine:
        engine.add(Request("parent", prompt(40), greedy(30)))
        for _ in range(3):
            engine.step()
        kv = engine.kvcache
        (parent,) = engine.scheduler.running
        kv.fork(parent, 99)
        length = kv.length_tokens(parent)
        assert kv.length_tokens(99) == length
        assert length % BLOCK_TOKENS
        kv.check()
        own, other = kv._table.pages(parent), kv._table.pages(99)
        assert own[:-1] == other[:-1]
        raw = kv._open_pages._raw
        size = kv.vm.layout.page_bytes
        for a, b in zip(raw[own[-1]], raw[other[-1]], strict=True):
            here, there = kv.vm.addresses([a, b]).tolist()
            assert here != there
            assert bytes_at(here, size) == bytes_at(there, size)
        kv.release(99)
        kv.check()


def bytes_at(address: int, count: int) -> bytes:
    import ctypes

    return ctypes.string_at(address, count)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    device_pages=st.integers(5, 14),
    host_pages=st.sampled_from([0, 0, 5]),
    chunk=st.integers(1, 80),
    every_steps=st.integers(0, 6),
    dtype=st.sampled_from(DTYPES),
    kv_format=st.sampled_from(FORMATS),
)
def test_any_lengths_limits_and_chunks(
    lengths: list[int],
    device_pages: int,
    host_pages: int,
    chunk: int,
    every_steps: int,
    dtype: torch.dtype,
    kv_format: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    limits = {"device_pages": device_pages, "host_pages": host_pages, "max_tokens_per_forward": chunk}
    with running(tiny_model(dtype), folder, kv_cache_dtype=kv_format, **limits) as engine:
        said = speak(engine, [prompt(length) for length in lengths], TOKENS, every_steps=every_steps)
        assert used_slots(engine) == [0, 0, 0]
    assert said == [alone(length, kv_format, dtype) for length in lengths]
