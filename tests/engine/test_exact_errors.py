"""What is refused or goes wrong loses nothing: what runs goes on, and what comes next works."""

import errno
import os
from pathlib import Path

import pytest
import torch
from fixtures_engine import (
    BLOCK_TOKENS,
    VOCAB_SIZE,
    Said,
    greedy,
    page_bytes,
    prompt,
    running,
    speak,
    tiny_model,
    used_slots,
)

from tokenvm.clock import FakeClock
from tokenvm.config import MemoryConfig
from tokenvm.engine.budget import minimum_kv_bytes
from tokenvm.engine.engine import Engine
from tokenvm.engine.launch import Settings, build_engine, needs_of
from tokenvm.errors import ConfigError, LimitTooSmall, RequestError, StorageError
from tokenvm.memory.backend import Kind
from tokenvm.memory.sim import SimDevice
from tokenvm.schedule.plan import Plan
from tokenvm.schedule.request import Request

PROMPTS = [prompt(70), prompt(33)]
TOKENS = 12
REFUSED = {
    "nothing at all": ((), 4, "the prompt is empty: give at least one token"),
    "an id beyond the vocabulary": ((5, VOCAB_SIZE), 4, f"from 0 to {VOCAB_SIZE - 1}"),
    "a negative id": ((5, -1), 4, "token id -1 is not in the vocabulary"),
    "as long as the model allows": (prompt(512), 4, "shorten it to 511 tokens"),
    "more pages than all tiers hold": (prompt(200), 180, "raise nvme_limit, host_memory or kv_limit"),
}


def roomy() -> list[Said]:
    with running(tiny_model(), Path("unused")) as engine:
        return speak(engine, PROMPTS, TOKENS)


@pytest.mark.parametrize(("ids", "tokens", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_impossible_request_is_refused_while_others_run(
    ids: tuple[int, ...], tokens: int, message: str, tmp_path: Path
) -> None:
    refusals = 0

    def ask(engine: Engine, _step: int) -> None:
        nonlocal refusals
        with pytest.raises(RequestError, match=message):
            engine.add(Request("impossible", ids, greedy(tokens)))
        refusals += 1

    with running(tiny_model(), tmp_path, device_pages=4, disk_pages=16) as engine:
        assert speak(engine, PROMPTS, TOKENS, on_step=ask) == roomy()
        assert speak(engine, PROMPTS, TOKENS) == roomy()
        assert used_slots(engine) == [0, 0, 0]
    assert refusals > 0


def test_the_longest_prompt_the_model_allows_gives_one_token(tmp_path: Path) -> None:
    with running(tiny_model(), tmp_path, device_pages=4) as engine:
        (said,) = speak(engine, [prompt(511)], TOKENS)
    assert len(said.tokens) == 1
    assert said.reason == "length"


def test_limits_that_are_too_small_name_the_smallest(tmp_path: Path) -> None:
    model = tiny_model()
    memory = MemoryConfig(block_tokens=BLOCK_TOKENS, kv_limit=1, nvme_limit=64 * page_bytes(model))
    smallest = minimum_kv_bytes(needs_of(model, Settings(memory, tmp_path))[0])
    with pytest.raises(LimitTooSmall, match=str(smallest)) as caught:
        build_engine(model, Settings(memory, tmp_path))
    assert caught.value.minimum_bytes == smallest
    least = memory.model_copy(update={"kv_limit": smallest})
    engine = build_engine(model, Settings(least, tmp_path, poison=True))
    assert speak(engine, PROMPTS, TOKENS) == roomy()
    engine.close()
    engine.close()


@pytest.mark.parametrize("number", ["max_num_seqs", "max_tokens_per_forward", "max_model_len", "threads"])
def test_numbers_below_one_are_refused(number: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{number}=-1 is not possible"):
        build_engine(tiny_model(), Settings(MemoryConfig(nvme_limit=0), tmp_path, **{number: -1}))


def test_a_request_for_which_the_disk_has_no_space_is_refused_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True

    def fallocate(fd: int, offset: int, length: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    with running(tiny_model(), tmp_path, device_pages=4) as engine:
        with pytest.raises(StorageError, match="free some space"):
            engine.add(Request("large", prompt(200), greedy(4)))
        assert not engine.has_work
        short = [prompt(20)]
        assert len(speak(engine, short, TOKENS)[0].tokens) == TOKENS
        full = False
        assert speak(engine, PROMPTS, TOKENS) == roomy()


@pytest.mark.parametrize("at_step", [0, 3, 20])
def test_an_interrupted_step_leaves_an_engine_that_works(at_step: int, tmp_path: Path) -> None:
    with running(tiny_model(), tmp_path, device_pages=4) as engine:
        for at, ids in enumerate(PROMPTS):
            engine.add(Request(f"prompt-{at}", ids, greedy(60)))
        for _ in range(at_step):
            engine.step()
        engine.runner.tap = interrupt
        with pytest.raises(KeyboardInterrupt):
            engine.step()
        engine.kvcache.check()
        engine.abort("prompt-0")
        engine.abort("prompt-1")
        assert used_slots(engine) == [0, 0, 0]
        assert speak(engine, PROMPTS, TOKENS) == roomy()


def test_an_interrupted_step_can_be_taken_again(tmp_path: Path) -> None:
    """Nothing was committed, so the same step gives the same bits: no request has to be given up."""

    def sometimes(engine: Engine, step: int) -> None:
        if step % 3 == 1 and engine.has_work:
            tap, engine.runner.tap = engine.runner.tap, interrupt
            with pytest.raises(KeyboardInterrupt):
                engine.step()
            engine.runner.tap = tap

    with running(tiny_model(), tmp_path, device_pages=4) as engine:
        assert speak(engine, PROMPTS, TOKENS, on_step=sometimes) == roomy()
        assert engine.stats()["streamed_pages"] > 0


def interrupt(_plan: Plan, _logits: torch.Tensor) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("at_step", [1, 5, 25])
def test_an_aborted_request_changes_nothing_for_others(at_step: int, tmp_path: Path) -> None:
    def leave(engine: Engine, step: int) -> None:
        if step == at_step:
            (event,) = engine.abort("extra")
            assert event.reason == "abort"

    with running(tiny_model(), tmp_path, device_pages=5) as engine:
        engine.add(Request("extra", prompt(90), greedy(100)))
        said = speak(engine, PROMPTS, TOKENS, on_step=leave, deaf_to={"extra"})
        assert used_slots(engine) == [0, 0, 0]
    assert said == roomy()


def test_a_disk_that_never_reads_back_what_was_written_is_an_error(tmp_path: Path) -> None:
    """Reading again and again would go on for ever."""
    device, clock, broken = SimDevice(0), FakeClock(), [True]
    device.fail_when(lambda copy: broken[0] and copy.kind is Kind.READ)
    with running(tiny_model(), tmp_path, device_pages=3, backend=device, clock=clock) as engine:
        with pytest.raises(StorageError, match="check the disk below nvme_path"):
            speak(engine, PROMPTS, TOKENS)
        assert engine.stats()["tiers"]["disk"]["faults"]["io_error"] > 0
        engine.kvcache.check()
        engine.abort("prompt-0")
        engine.abort("prompt-1")
        broken[0] = False
        assert speak(engine, PROMPTS, TOKENS) == roomy()
