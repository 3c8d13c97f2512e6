"""Kept pages while time goes by: those that grow too old, and those named while the disk rests."""

from __future__ import annotations

from pathlib import Path

from fixtures_engine import speak
from warm_world import PROMPTS, cold, disk_hits, kept

from tokenvm.keeping import SPARE_AGES
from tokenvm.vocab import Tier


def test_pages_grow_too_old_while_an_engine_runs(tmp_path: Path) -> None:
    with kept(tmp_path) as engine:
        speak(engine, PROMPTS[:1])
    with kept(tmp_path, nvme_ttl=3600) as engine:
        register = engine.kvcache.vm.keeping.register
        assert len(register.found) >= 6
        register._oldest_s = lambda: 2.0**40  # as if an hour had passed
        said = speak(engine, PROMPTS[1:2], on_step=lambda engine, step: engine.kvcache.check())
        assert said == cold()[1:2]
        assert engine.kvcache.vm.index.walk([page.key for page in register.found[:1]]) == []
    with kept(tmp_path) as engine:
        speak(engine, PROMPTS[:1])
        assert disk_hits(engine) == 0


def test_what_is_too_old_is_not_served_either(tmp_path: Path) -> None:
    with kept(tmp_path) as engine:
        speak(engine, PROMPTS[:1])
    with kept(tmp_path, nvme_ttl=3600) as engine:
        engine.kvcache.vm.keeping.register._oldest_s = lambda: 2.0**40  # as if an hour had passed
        assert speak(engine, PROMPTS[:1]) == cold()[:1]
        assert disk_hits(engine) == 0


def test_ages_are_bounded(tmp_path: Path) -> None:
    with kept(tmp_path, nvme_ttl=3600) as engine:
        speak(engine, PROMPTS[:1])
        vm = engine.kvcache.vm
        vm.finish_transfers()
        on_disk = [unit for unit in vm.index if vm.ledger.resident(unit, Tier.DISK)]
        for _ in range(400):
            vm.keeping.named(on_disk[0])
        assert len(vm.keeping._aging) <= 2 * vm.ledger.capacity(Tier.DISK) + SPARE_AGES
        assert {unit for _, unit in vm.keeping._aging} == set(on_disk)


def test_pages_named_while_the_disk_rests_are_kept_later(tmp_path: Path) -> None:
    with kept(tmp_path) as engine:
        pool = engine.kvcache.vm.ledger.pool(Tier.DISK)
        pool.closed = True
        speak(engine, PROMPTS[:1])
        assert pool.used == 0
        pool.closed = False
        speak(engine, PROMPTS[1:2])
    with kept(tmp_path) as engine:
        speak(engine, PROMPTS[:1])
        assert disk_hits(engine) == 96
