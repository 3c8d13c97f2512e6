"""An engine that was started again says what it said before, from pages that another one left on disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures_engine import greedy, prompt, running, speak, tiny_model
from warm_world import PROMPTS, WHOLE_PAGES, cold, disk_hits, kept, model

from tokenvm.engine.engine import Engine
from tokenvm.errors import ConfigError, StorageError
from tokenvm.memory.kept_size import geometry_of_store, limit_for
from tokenvm.memory.layout import PageLayout
from tokenvm.schedule.request import Request
from tokenvm.vocab import Tier


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"device_pages": 6},
        {"host_pages": 5, "device_pages": 6},
        {"nvme_flush": "none"},
        {"wide": True, "compression": "bitpack"},
        {"kv_cache_dtype": "int8", "device_pages": 30},
    ],
    ids=["roomy", "crowded", "host", "unflushed", "packed", "lossy"],
)
def test_a_restart_is_warm_to_the_bit(tmp_path: Path, more: dict[str, object]) -> None:
    expected = cold(bool(more.get("wide")), str(more.get("kv_cache_dtype", "auto")))
    with kept(tmp_path, **more) as engine:
        assert speak(engine, PROMPTS) == expected
        assert engine.stats()["kept"]["warm_pages"] == 0
    with kept(tmp_path, **more) as engine:
        told = engine.stats()["kept"]
        assert told["warm_pages"] >= WHOLE_PAGES
        assert told["warm_tokens"] == 16 * told["warm_pages"]
        assert engine.kvcache.vm.ledger.used(Tier.DISK) == told["warm_pages"]
        assert speak(engine, PROMPTS) == expected
        assert disk_hits(engine) >= 16 * WHOLE_PAGES * 3 // 4
        assert engine.account.lost_pages == 0


def test_without_a_named_folder_nothing_stays(tmp_path: Path) -> None:
    with running(model(), tmp_path, device_pages=20) as engine:
        speak(engine, PROMPTS[:1])
        assert engine.stats()["kept"] == {"keeps": False}
    assert list(tmp_path.iterdir()) == []
    with kept(tmp_path, enable_prefix_caching=False) as engine:
        speak(engine, PROMPTS[:1])
    assert list(tmp_path.iterdir()) == [], "nobody would find them"


def test_a_killed_engine_leaves_what_it_had_written(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "sys.path[:0] = [sys.argv[2], sys.argv[3]]\n"
        "from fixtures_engine import speak; from warm_world import PROMPTS, kept\n"
        "def die(engine, step):\n"
        "    if step == 5:\n"
        "        engine.kvcache.vm.finish_transfers(); engine.kvcache.vm.keeping.register.flush()\n"
        "        print(engine.kvcache.kept['flushed_pages'], flush=True)\n"
        "        engine.step()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "with kept(Path(sys.argv[1])) as engine: speak(engine, PROMPTS, on_step=die)\n"
    )
    here = Path(__file__).parent
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(here), str(here.parent)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    with kept(tmp_path) as engine:
        assert engine.stats()["kept"]["warm_pages"] >= int(killed.stdout) > 0
        assert speak(engine, PROMPTS) == cold()
        assert disk_hits(engine) > 0
        assert engine.account.lost_pages == 0


def harm_a_slab(folder: Path) -> None:
    slab = folder / "slab-00000"
    data = bytearray(slab.read_bytes())
    for at in range(1000, len(data), 4096 * 9):
        data[at] ^= 0x40
    slab.write_bytes(data)


def swap_parts(folder: Path) -> None:
    slab = folder / "slab-00000"
    data = bytearray(slab.read_bytes())
    for at in range(0, len(data) - 8192, 8192 * 3):
        data[at : at + 4096], data[at + 4096 : at + 8192] = data[at + 4096 : at + 8192], data[at : at + 4096]
    slab.write_bytes(data)


def harm_the_index(folder: Path) -> None:
    for name in ("index-0", "index-1"):
        data = bytearray((folder / name).read_bytes())
        for at in range(4096 + 50, len(data), 700):
            data[at] ^= 0x01
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("harm", [harm_a_slab, swap_parts, harm_the_index])
def test_damage_is_a_miss_and_never_a_token(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    with kept(tmp_path) as engine:
        speak(engine, PROMPTS)
    harm(tmp_path)
    with kept(tmp_path) as engine:
        assert speak(engine, PROMPTS) == cold()
        counts = engine.stats()["kept"]
        assert engine.account.lost_pages or counts["damaged_records"], "the damage was met"
    with kept(tmp_path) as engine:
        assert speak(engine, PROMPTS) == cold()
        assert engine.account.lost_pages == 0, "what was damaged was given up for good"


def test_pages_are_shared_within_a_salt_only(tmp_path: Path) -> None:
    def ask(engine: Engine, salt: str) -> int:
        engine.add(Request(salt, PROMPTS[0], greedy(2), cache_salt=salt))
        while engine.has_work:
            engine.step()
        return disk_hits(engine)

    with kept(tmp_path) as engine:
        assert ask(engine, "tenant a") == 0
    with kept(tmp_path) as engine:
        assert ask(engine, "tenant b") == 0
        assert ask(engine, "tenant a") == 96


def test_another_models_pages_are_never_found(tmp_path: Path) -> None:
    with kept(tmp_path) as engine:
        speak(engine, PROMPTS)
        pages = engine.stats()["kept"]["kept_pages"]
    other = tiny_model(layers=3)
    other.weights.layers[0].attn_norm[0] += 1.0
    limit = limit_for(40, geometry_of_store(PageLayout(3, 4096)))
    with running(other, tmp_path, device_pages=20, keep_pages=True, nvme_limit=limit) as engine:
        assert engine.stats()["kept"]["foreign_pages"] >= pages > 0
        speak(engine, PROMPTS)
        assert disk_hits(engine) == 0


def test_a_reset_is_a_reset_after_a_restart_too(tmp_path: Path) -> None:
    with kept(tmp_path) as engine:
        speak(engine, PROMPTS)
        engine.kvcache.forget_prefixes()
        assert engine.stats()["kept"]["kept_pages"] == 0
    with kept(tmp_path) as engine:
        assert engine.stats()["kept"]["warm_pages"] == 0


def test_a_disk_smaller_than_the_device_keeps_idle_pages_only(tmp_path: Path) -> None:
    with kept(tmp_path, disk_pages=8) as engine:
        assert not engine.kvcache.vm.keeping.ample
        assert speak(engine, PROMPTS) == cold()
        assert engine.kvcache.vm.room.reclaimed_pages == 0, "nothing is given up on the device for the disk"
    with kept(tmp_path, disk_pages=8) as engine:
        assert 0 < engine.stats()["kept"]["warm_pages"] <= 8
        assert speak(engine, PROMPTS) == cold()


def test_more_than_the_disk_holds_gives_up_the_oldest(tmp_path: Path) -> None:
    many = [prompt(100, seed) for seed in range(20, 30)]
    for _ in range(2):
        with kept(tmp_path, disk_pages=24) as engine:
            for one in many:
                speak(engine, [one])
                assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) <= limit_for(
                    24, geometry_of_store(PageLayout(3, 4096))
                )
    with kept(tmp_path, disk_pages=24) as engine:
        assert engine.stats()["kept"]["warm_pages"] > 12
        speak(engine, many[-1:])
        assert disk_hits(engine) == 96
        speak(engine, many[:1])
        assert disk_hits(engine) == 96


def test_another_process_may_read_along(tmp_path: Path) -> None:
    with kept(tmp_path) as writer:
        speak(writer, PROMPTS)
        writer.kvcache.vm.finish_transfers()
        writer.kvcache.vm.keeping.register.flush()
        with pytest.raises(StorageError, match="nvme_read_only"), kept(tmp_path):
            pass
        with kept(tmp_path, nvme_read_only=True, device_pages=12) as reader:
            assert speak(reader, PROMPTS) == cold()
            assert disk_hits(reader) > 0
            known = {page.key for page in reader.kvcache.vm.keeping.register.found}
            speak(reader, [prompt(150, seed) for seed in range(30, 34)])
            index = reader.kvcache.vm.index
            assert known <= {index.name(unit)[0] for unit in index}, "nothing is gained by letting go of them"
            assert reader.stats()["moved_bytes"]["nvme_write"] == 0
        writer.kvcache.forget_prefixes()
        assert speak(writer, [prompt(200, 9)])[0].reason == "length"
    with kept(tmp_path, nvme_read_only=True) as reader:
        assert reader.stats()["kept"]["keeps"] is False
    with (
        pytest.raises(ConfigError, match="set nvme_path"),
        kept(tmp_path, nvme_read_only=True, keep_pages=False),
    ):
        pass


def test_a_reader_meets_pages_that_were_written_again(tmp_path: Path) -> None:
    with kept(tmp_path, disk_pages=24) as writer:
        speak(writer, PROMPTS)
        writer.kvcache.vm.finish_transfers()
        writer.kvcache.vm.keeping.register.flush()
        with kept(tmp_path, disk_pages=24, nvme_read_only=True) as reader:
            for seed in range(20, 26):
                speak(writer, [prompt(100, seed)])
            writer.kvcache.vm.finish_transfers()
            assert speak(reader, PROMPTS) == cold()
            assert reader.account.lost_pages > 0


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with kept(tmp_path) as engine:
        speak(engine, PROMPTS[:1])
    assert len(os.listdir("/proc/self/fd")) == before
