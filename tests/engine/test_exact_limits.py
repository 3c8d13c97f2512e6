"""Where pages lie never changes a bit: device tiers of 3 to 8 pages against a device with room for all."""

from functools import cache
from pathlib import Path

import pytest
import torch
from fixtures_engine import Said, assert_spilled, greedy, prompt, running, speak, tiny_model, used_slots
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenvm.engine.engine import Engine
from tokenvm.schedule.request import Request

DTYPES = [torch.bfloat16, torch.float32]
LENGTHS = (70, 129, 33, 16)
TOKENS = 20


@cache
def alone(length: int, dtype: torch.dtype, tokens: int = TOKENS) -> Said:
    """What a prompt says alone, with all its pages in memory and the whole prompt in one chunk."""
    with running(tiny_model(dtype), Path("unused"), max_tokens_per_forward=512) as engine:
        (said,) = speak(engine, [prompt(length)], tokens)
        assert engine.stats()["streamed_pages"] == 0
    return said


def all_alone(dtype: torch.dtype, lengths: tuple[int, ...] = LENGTHS) -> list[Said]:
    return [alone(length, dtype) for length in lengths]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device_pages", [3, 4, 5, 8])
def test_one_sequence_under_a_limit(device_pages: int, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(dtype)
    with running(model, tmp_path, device_pages=device_pages) as engine:
        assert speak(engine, [prompt(129)], TOKENS) == [alone(129, dtype)]
        assert_spilled(engine, model, device_pages)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smallest_device_of_two_pages(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(dtype)
    with running(model, tmp_path, device_pages=2) as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == all_alone(dtype)
        assert_spilled(engine, model, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device_pages", [5, 6, 8])
@pytest.mark.parametrize("every_steps", [0, 3])
def test_sequences_together_under_a_limit(
    device_pages: int, every_steps: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, crowd = tiny_model(dtype), 0
    with running(model, tmp_path, device_pages=device_pages) as engine:

        def count(_engine: object, _step: int) -> None:
            nonlocal crowd
            crowd = max(crowd, len(engine.scheduler.running))

        prompts = [prompt(length) for length in LENGTHS]
        said = speak(engine, prompts, TOKENS, every_steps=every_steps, on_step=count)
        assert_spilled(engine, model, device_pages)
    assert crowd == 4
    assert said == all_alone(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 7, 16, 17, 48])
def test_chunks_of_prefill(chunk: int, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(dtype)
    with running(model, tmp_path, max_tokens_per_forward=chunk) as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == all_alone(dtype)
    with running(model, tmp_path, device_pages=5, max_tokens_per_forward=chunk) as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == all_alone(dtype)
        assert_spilled(engine, model, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_compute_threads(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(dtype)
    with running(model, tmp_path, device_pages=5, threads=2) as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == all_alone(dtype)
        assert_spilled(engine, model, 5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("host_pages", "disk_pages"), [(64, 0), (6, 64)], ids=["host alone", "host, then disk"]
)
def test_the_host_tier(host_pages: int, disk_pages: int, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(dtype)
    with running(model, tmp_path, device_pages=5, host_pages=host_pages, disk_pages=disk_pages) as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == all_alone(dtype)
        assert_spilled(engine, model, 5, host=True, disk=disk_pages > 0)


@pytest.mark.parametrize(
    "reads",
    [{"prefetch_strategy": "none"}, {"prefetch_ahead": 1}, {"prefetch_ahead": 9}, {"prefetch_depth": 1}],
    ids=["not ahead", "one layer ahead", "more layers ahead than there are", "one read at a time"],
)
def test_how_pages_are_read(reads: dict[str, object], tmp_path: Path) -> None:
    model = tiny_model()
    with running(model, tmp_path, device_pages=5, **reads) as engine:
        assert speak(engine, [prompt(length) for length in LENGTHS], TOKENS) == all_alone(torch.bfloat16)
        assert_spilled(engine, model, 5)


def test_a_device_that_is_used_again_and_again(tmp_path: Path) -> None:
    """Slots of finished sequences are poisoned and taken by later ones, in memory and on disk."""
    model = tiny_model()
    with running(model, tmp_path, device_pages=4, disk_pages=24, max_num_seqs=2) as engine:
        for _ in range(4):
            assert speak(engine, [prompt(129), prompt(70)], TOKENS) == all_alone(torch.bfloat16, (129, 70))
        assert_spilled(engine, model, 4)
        assert used_slots(engine) == [0, 0, 0]


def test_slots_of_a_finished_sequence_hold_pages_of_those_that_run(tmp_path: Path) -> None:
    """What was streamed while the device was shared comes back within three steps."""
    model = tiny_model()
    streamed: list[tuple[int, int]] = []

    def watch(engine: Engine, _step: int) -> None:
        engine.kvcache.vm.finish_transfers()
        streamed.append((len(engine.scheduler.running), engine.account.streamed_pages))

    with running(model, tmp_path, device_pages=7) as engine:
        engine.add(Request("short", prompt(33), greedy(8)))
        said = speak(engine, [prompt(81)], TOKENS, on_step=watch, deaf_to={"short"})
    each = [(crowd, now - before) for (crowd, now), (_, before) in zip(streamed[1:], streamed, strict=False)]
    ended = next(step for step, (crowd, _) in enumerate(each) if crowd == 1)
    assert each[ended][1] > 0
    assert not any(count for _, count in each[ended + 3 :])
    assert said == [alone(81, torch.bfloat16)]


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    device_pages=st.integers(2, 8),
    host_pages=st.sampled_from([0, 0, 5]),
    chunk=st.integers(1, 80),
    every_steps=st.integers(0, 6),
    dtype=st.sampled_from(DTYPES),
)
def test_any_lengths_limits_and_chunks(
    lengths: list[int],
    device_pages: int,
    host_pages: int,
    chunk: int,
    every_steps: int,
    dtype: torch.dtype,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    limits = {"device_pages": device_pages, "host_pages": host_pages, "max_tokens_per_forward": chunk}
    with running(tiny_model(dtype), folder, **limits) as engine:
        said = speak(engine, [prompt(length) for length in lengths], TOKENS, every_steps=every_steps)
        pages = max(-(-(length + TOKENS - 1) // 16) for length in lengths)
        assert (engine.stats()["streamed_pages"] > 0) or pages <= device_pages
    assert said == [alone(length, dtype) for length in lengths]
