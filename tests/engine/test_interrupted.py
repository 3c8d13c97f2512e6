"""What a review once broke: interleaved callers, interrupts, closed engines, slots whose owner has gone."""

from __future__ import annotations

import pytest
from fixtures_engine import BLOCK_TOKENS, greedy, page_bytes, prompt, running, speak, tiny_model, used_slots

from tokenvm.config import MemoryConfig
from tokenvm.engine.fingerprint import fingerprint
from tokenvm.engine.launch import Settings, build_engine, needs_of
from tokenvm.errors import RequestError, StorageError
from tokenvm.memory.sim import SimDevice
from tokenvm.schedule.request import Request


def engine_of(model, tmp_path, slots, backend=None, **more):
    page = page_bytes(model)
    limit = slots * page + page  # a page for the ring
    memory = MemoryConfig(kv_limit=limit, nvme_limit=400 * page, block_tokens=BLOCK_TOKENS)
    return build_engine(model, Settings(memory, tmp_path, threads=1, poison=True, **more), backend)


def drain(engine):
    while engine.has_work:
        engine.step()


def test_a_closed_engine_refuses_by_name(tmp_path):
    engine = engine_of(tiny_model(), tmp_path, 4)
    engine.close()
    engine.close()
    with pytest.raises(RequestError, match="closed"):
        engine.add(Request("late", prompt(5), greedy(2)))
    with pytest.raises(RequestError, match="closed"):
        engine.step()


def test_slots_of_finished_sequences_are_waited_for(tmp_path, monkeypatch):
    """Copies that land only when somebody waits: a finished sequence's slots come back late, but they come."""
    backend = SimDevice(3)
    monkeypatch.setattr(backend._world, "land_some", lambda: None)
    engine = engine_of(tiny_model(), tmp_path, 8, backend, max_num_seqs=1)
    for name in range(12):
        engine.add(Request(f"r{name}", prompt(9 * BLOCK_TOKENS - 3, seed=name), greedy(1)))
    drain(engine)
    engine.kvcache.vm.finish_transfers()
    engine.kvcache.check()
    engine.close()


@pytest.mark.parametrize("point", ["fill", "submit_along", "finish"])
def test_an_interrupt_leaks_no_slot(tmp_path, monkeypatch, point):
    engine = engine_of(tiny_model(), tmp_path, 4, SimDevice(1))
    vm = engine.kvcache.vm
    place, name = {
        "fill": (vm.arena, "fill"),
        "submit_along": (vm._transfers, "submit_along"),
        "finish": (vm.ledger, "land"),
    }[point]
    error = MemoryError if point == "submit_along" else KeyboardInterrupt
    original, calls = getattr(place, name), iter(range(10**6))

    def interrupted(*given, **named):
        if next(calls) % 5 == 3:
            raise error
        return original(*given, **named)

    monkeypatch.setattr(place, name, interrupted)
    stopped = 0
    for number in range(12):
        try:
            engine.add(Request(f"r{number}", prompt(7 * BLOCK_TOKENS, seed=number), greedy(3)))
            drain(engine)
        except error:
            stopped += 1
            engine.abort(f"r{number}")
    monkeypatch.setattr(place, name, original)
    assert stopped > 2
    engine.kvcache.forget_prefixes()
    vm.finish_transfers()
    engine.kvcache.check()
    assert [vm.ledger.used(tier) for tier in (0, 1, 2)] == [0, 0, 0]
    engine.add(Request("after", prompt(7 * BLOCK_TOKENS), greedy(3)))
    drain(engine)
    engine.close()


def test_a_fingerprint_covers_every_weight_that_shapes_kv():
    model = tiny_model()
    settings = Settings(MemoryConfig(block_tokens=BLOCK_TOKENS), None)
    _, geometry = needs_of(model, settings)
    layer = model.weights.layers[-1]
    seen = {fingerprint(model, geometry, 512)}
    parts = [layer.attn_norm, layer.mlp_norm, model.weights.ends.embedding.storage]
    parts += [matrix.storage for matrix in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    for part in parts:
        part.view(-1)[:1] += 1
        seen.add(fingerprint(model, geometry, 512))
    assert len(seen) == 1 + len(parts)


def test_requests_are_promised_space_for_those_that_run_at_once(tmp_path):
    engine = engine_of(tiny_model(), tmp_path, 4, max_num_seqs=2)
    for name in range(30):
        engine.add(Request(f"r{name}", prompt(6 * BLOCK_TOKENS), greedy(1)))
    assert engine.scheduler.most_pages == 12
    for name in range(30):
        engine.abort(f"r{name}")
    assert engine.scheduler.most_pages == 0
    engine.close()


@pytest.mark.parametrize("place", ["plan", "match", "begin", "end_round"])
@pytest.mark.parametrize("abort", [False, True])
def test_an_interrupt_between_decision_and_deed(tmp_path, monkeypatch, place, abort):
    """What was planned and not carried out is planned anew; nobody is forgotten, and no token differs."""
    prompts = [prompt(50 + 7 * number, seed=number) for number in range(6)]
    with running(tiny_model(), tmp_path) as engine:
        expected = [one.tokens for one in speak(engine, prompts, 8)]
    with running(tiny_model(), tmp_path, device_pages=9, max_num_seqs=6) as engine:
        kvcache = engine.kvcache
        target, name = {
            "plan": (engine.scheduler._admission, "turn"),
            "begin": (kvcache._prefixes, "begin"),
            "match": (kvcache._prefixes, "match"),
            "end_round": (kvcache._prefixes, "end_round"),
        }[place]
        original, calls, stopped = getattr(target, name), iter(range(10**6)), 0

        def interrupted(*given, **named):
            answer = original(*given, **named)
            if next(calls) % 3 == 1 and stopped < 4:
                raise KeyboardInterrupt
            return answer

        monkeypatch.setattr(target, name, interrupted)
        said = {f"r{number}": [] for number in range(6)}
        for number, ids in enumerate(prompts):
            engine.add(Request(f"r{number}", ids, greedy(8)))
        for _ in range(200):
            if not engine.has_work:
                break
            try:
                result = engine.step()
            except KeyboardInterrupt:
                stopped += 1
                if abort and stopped == 1:
                    engine.abort("r3")
                continue
            for event in result.events:
                if hasattr(event, "token") and event.seq in result.choices and not hasattr(event, "reason"):
                    said[event.request_id].append(event.token)
        assert not engine.has_work, "the engine makes no progress"
        assert stopped > 0
        for number in range(6):
            if not abort or number != 3:
                assert said[f"r{number}"] == expected[number]
        monkeypatch.setattr(target, name, original)
        assert used_slots(engine) == [0, 0, 0]


def test_a_tier_that_cannot_be_opened_leaves_nothing_behind(tmp_path, monkeypatch):
    opened, closed = [], []
    allocate = SimDevice.allocate

    def counted(self, nbytes):
        opened.append(allocate(self, nbytes))
        close = opened[-1].close
        monkeypatch.setattr(opened[-1], "close", lambda: (closed.append(1), close()))
        return opened[-1]

    monkeypatch.setattr(SimDevice, "allocate", counted)
    (tmp_path / "file").write_text("no folder")
    model, device = tiny_model(), SimDevice(0)
    page = page_bytes(model)
    memory = MemoryConfig(
        kv_limit=9 * page, host_memory=4 * page, nvme_limit=9 * page, block_tokens=BLOCK_TOKENS
    )
    with pytest.raises(StorageError, match="cannot write"):
        build_engine(model, Settings(memory, tmp_path / "file", threads=1), device)
    assert len(opened) == len(closed) == 2
    assert device._world.closed
