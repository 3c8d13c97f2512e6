"""A model whose sequences are paused at random says the same, to the bit, with raw and with lossy KV."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from fixtures_engine import Lasting, prompt, running, speak, tiny_model

from tokenvm.engine.engine import Engine
from tokenvm.errors import StorageError
from tokenvm.memory.backend import Kind
from tokenvm.memory.sim import SimCopy, SimDevice

LENGTHS = (40, 70, 25)
TOKENS = 24


def pause_at_random(engine: Engine, seed: int) -> list[int]:
    """Before each step let some sequences rest and some pages leave; staging resumes them. Return what was counted."""
    step, random, counts = engine.step, Random(seed), [0, 0]

    def restless() -> object:
        kv = engine.kvcache
        for seq in [seq for seq in engine.scheduler.running if seq in kv and random.random() < 0.3]:
            kv.pause(seq)
            counts[0] += 1
            frozen = kv._pauses._frozen(seq)
            try:
                kv.vm.make_room(random.randint(1, kv.vm.ledger.capacity(0)), kv._running())
            except StorageError:
                kv.vm.finish_transfers()
            counts[1] += sum(not kv.vm.ledger.resident(unit, 0) for unit in frozen)
            kv.check()
        return step()

    engine.step = restless  # type: ignore[method-assign, assignment]
    return counts


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kv_format", ["auto", "int8", "fp8"])
def test_a_pause_changes_no_bit(kv_format: str, seed: int, tmp_path: Path) -> None:
    model, prompts = tiny_model(), [prompt(length) for length in LENGTHS]
    with running(model, tmp_path, kv_cache_dtype=kv_format) as engine:
        expected = speak(engine, prompts, TOKENS)
    backend = SimDevice(seed)
    with running(model, tmp_path, device_pages=14, backend=backend, kv_cache_dtype=kv_format) as engine:
        counts = pause_at_random(engine, seed)
        assert speak(engine, prompts, TOKENS) == expected
    assert min(counts) > 5, "open pages left and came back"


@pytest.mark.parametrize("kv_format", ["auto", "int8"])
def test_open_pages_that_do_not_come_back_change_no_bit(kv_format: str, tmp_path: Path) -> None:
    model, prompts = tiny_model(), [prompt(length) for length in LENGTHS]
    with running(model, tmp_path, kv_cache_dtype=kv_format) as engine:
        expected = speak(engine, prompts, TOKENS)
    backend, random = SimDevice(7), Random(7)

    def now_and_then(copy: SimCopy) -> bool:
        return copy.kind is Kind.READ and random.random() < 0.15

    backend.fail_when(Lasting(now_and_then))
    with running(model, tmp_path, device_pages=14, backend=backend, kv_cache_dtype=kv_format) as engine:
        fallen = []
        renew = engine.kvcache._pauses._renew
        engine.kvcache._pauses._renew = lambda *given: (fallen.append(given), renew(*given))  # type: ignore
        pause_at_random(engine, 7)
        assert speak(engine, prompts, TOKENS) == expected
    assert fallen
