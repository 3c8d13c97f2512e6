"""Kill writers, break their disks and damage their files: whoever starts next must say nothing wrong.

Kills: a writer serves prompts on a folder that keeps pages, and is killed at a random moment; in turn as it is, with
writes that fail from some moment on, and with writes that are dropped. The next one must find every page that was
acknowledged as flushed (where no write was dropped), be ready within 2 s, and answer all prompts right.

Damage: bits are flipped, parts swapped and files cut in a folder full of pages, then it is served from. Every answer
must be right, damage must be counted, and pages that are whole must still be found.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from children import Child, Say, once
from output_options import add_output_options

from tokenvm.bench.report import Grid, Report, finish, machine
from tokenvm.bench.toy import VOCAB_SIZE, tiny_model
from tokenvm.config import MemoryConfig
from tokenvm.engine.engine import Engine
from tokenvm.engine.launch import Settings, build_engine, needs_of
from tokenvm.memory.backend import DeviceBackend
from tokenvm.memory.faulty import FaultyDevice
from tokenvm.residency.prefix_plan import Rates
from tokenvm.schedule.plan import TokenEvent
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.vocab import Tier

BLOCK_TOKENS, DEVICE_PAGES = 16, 8
PROMPTS, ANSWER_TOKENS = 20, 4
READY_S = 2.0
MODES = ("as it is", "writes fail", "writes are dropped")
PAGE_KEY_DIGITS = 8
SLAB_SHARE, PER_START = 0.9, 25
"""Of the damage, most goes to slabs: where the head of the index is hit, nothing is left to find."""


def prompt(number: int) -> tuple[int, ...]:
    """Return a prompt of 3 to 7 pages; every other one goes on from the one before."""
    rng = random.Random(number // 2)
    ids = [rng.randrange(3, VOCAB_SIZE) for _ in range(BLOCK_TOKENS * 7)]
    return tuple(ids[: BLOCK_TOKENS * (3 + 3 * (number % 2)) + 5])


def opened(folder: Path | None, device: DeviceBackend | None = None) -> Engine:
    """Start an engine on a folder that keeps pages, with room for a few on the device; without one, all on it."""
    model = tiny_model()
    page = needs_of(model, Settings(MemoryConfig(block_tokens=BLOCK_TOKENS), Path("unused")))[0].page_bytes
    limits: dict[str, Any] = {"nvme_limit": 0}
    if folder is not None:
        limits = {"kv_limit": 2 * DEVICE_PAGES * page, "nvme_limit": 2 << 20, "nvme_path": folder}
    memory = MemoryConfig(block_tokens=BLOCK_TOKENS, host_memory=0, **limits)
    numbers = {"threads": 1, "max_num_seqs": 3, "max_tokens_per_forward": 64}
    keep = folder is not None
    settings = Settings(memory, folder or Path("unused"), keep_pages=keep, lookahead=False, **numbers)
    return build_engine(model, settings, device)


def serve(
    engine: Engine, numbers: list[int], on_step: Callable[[], None] = lambda: None
) -> dict[int, list[int]]:
    """Answer these prompts; return what was said to each."""
    said: dict[int, list[int]] = {number: [] for number in numbers}
    params = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS, ignore_eos=True)
    for number in numbers:
        engine.add(Request(str(number), prompt(number), params))
    while engine.has_work:
        engine.kvcache.rates = Rates(0.0, 0.0)  # what is on disk is read, however soon it could be computed
        result = engine.step()
        assert not result.failures, result.failures
        for event in result.events:
            if isinstance(event, TokenEvent):
                said[int(event.request_id)].append(event.token)
        on_step()
    return said


def kept_keys(engine: Engine) -> list[str]:
    """Return the names of the pages that lie on disk."""
    vm = engine.kvcache.vm
    units = [unit for unit in vm.index if vm.ledger.resident(unit, Tier.DISK)]
    return sorted(vm.index.name(unit)[0].hex()[:PAGE_KEY_DIGITS] for unit in units)


def write(folder: Path, mode: str, seed: int, say: Say) -> None:
    """Serve for ever; say now and then which pages are flushed."""
    faults = ("io_error", "no_space", "gone") if mode == MODES[1] else ("dropped",)
    device = FaultyDevice(0.05 if mode == MODES[2] else 0.0, seed, reads=(), writes=faults)
    engine, rng, steps = opened(folder, device), random.Random(seed), [0]
    failing_from = rng.randint(1, 150)

    def acknowledge() -> None:
        steps[0] += 1
        if mode == MODES[1] and steps[0] > failing_from:
            device.rate = 1.0
        if steps[0] % 7 == 0:
            engine.kvcache.vm.keeping.tend()
            keys = kept_keys(engine)
            engine.kvcache.vm.keeping.register.flush()
            say({"flushed": keys})

    say({"flushed": kept_keys(engine)})
    while True:
        serve(engine, rng.sample(range(PROMPTS), 3), acknowledge)


def check(folder: Path, _mode: str, _seed: int, say: Say) -> None:
    """Start on what is there; say what was found and what is answered."""
    begun_s = time.monotonic()
    engine = opened(folder)
    ready_s = time.monotonic() - begun_s
    found = kept_keys(engine)
    said = serve(engine, list(range(PROMPTS)))
    stats = engine.stats()
    engine.close()
    faults = stats["tiers"]["disk"]["faults"]
    hits = stats["prefix_cache"]["hit_tokens"]["disk"]
    say({"ready_s": ready_s, "found": found, "said": said, "faults": faults, "disk_hit_tokens": hits})


def answers(_folder: Path, _mode: str, _seed: int, say: Say) -> None:
    """Say the right answers, from an engine that has room for all."""
    say(serve(opened(None), list(range(PROMPTS))))


class Torture:
    """Counts what happened; `wrong` is what must never."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.right = once(answers, folder)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.slowest_s = 0.0

    def kill(self, turn: int) -> None:
        """Kill one writer and see what the next one finds. Two of three begin on an empty folder."""
        mode, folder = MODES[turn % len(MODES)], self.folder / "kills"
        if self.rng.random() < 2 / 3:
            shutil.rmtree(folder, ignore_errors=True)
        writer = Child(write, folder, mode, self.rng.randrange(1 << 30))
        flushed = writer.hear()["flushed"]
        time.sleep(self.rng.uniform(0.0, 0.4))
        heard = writer.kill()
        flushed = heard[-1]["flushed"] if heard else flushed
        seen = self._look(folder, f"kill {turn} ({mode})")
        missing = set(flushed) - set(seen["found"])
        if missing:
            self.wrong.append(
                f"kill {turn} ({mode}): {len(missing)} of {len(flushed)} flushed pages are gone"
            )
        self.counts["kills"] += 1
        self.counts["flushed pages found again"] += len(flushed)

    def damage(self, changes: int, pristine: Path) -> None:
        """Damage a copy of a folder and serve from it."""
        folder = self.folder / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pristine, folder)
        for _ in range(changes):
            self.counts[self._damage_one(folder)] += 1
        self._look(folder, f"damage {self.counts['damages']}")
        self.counts["damages"] += changes

    def _damage_one(self, folder: Path) -> str:
        files = [
            path for path in sorted(folder.iterdir()) if path.name != "lock" and path.stat().st_size >= 8192
        ]
        slabs = [path for path in files if path.name.startswith("slab")]
        path = self.rng.choice(slabs if slabs and self.rng.random() < SLAB_SHARE else files)
        size, kind = path.stat().st_size, self.rng.choice(("bit", "bit", "bits", "swap", "cut"))
        with path.open("r+b") as file:
            if kind == "cut" and self.rng.random() < 0.05:
                file.truncate(self.rng.randrange(size))
                return "files cut"
            if kind == "swap":
                first, second = (self.rng.randrange(max(1, size // 4096)) * 4096 for _ in range(2))
                blocks = [_at(file, first, 4096), _at(file, second, 4096)]
                _put(file, first, blocks[1])
                _put(file, second, blocks[0])
                return "blocks swapped"
            for _ in range(1 if kind == "bit" else self.rng.randint(2, 9)):
                at = self.rng.randrange(size)
                _put(file, at, bytes([_at(file, at, 1)[0] ^ 1 << self.rng.randrange(8)]))
            return "places flipped"

    def _look(self, folder: Path, what: str) -> Any:
        seen = once(check, folder)
        self.slowest_s = max(self.slowest_s, seen["ready_s"])
        if seen["said"] != self.right:
            self.wrong.append(f"{what}: another answer")
        self.counts["answers"] += len(seen["said"])
        self.counts["pages found at a start"] += len(seen["found"])
        self.counts["tokens served from disk"] += seen["disk_hit_tokens"]
        self.counts["damaged copies counted"] += seen["faults"]["checksum"] + seen["faults"]["short_read"]
        return seen


def _at(file: Any, place: int, nbytes: int) -> bytes:
    file.seek(place)
    return bytes(file.read(nbytes))


def _put(file: Any, place: int, data: bytes) -> None:
    file.seek(place)
    file.write(data)


def run(folder: Path, kills: int, damages: int, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Do all of it; return the figures."""
    torture, begun_s = Torture(folder, seed), time.monotonic()
    for turn in range(kills):
        torture.kill(turn)
        tell(f"{turn + 1} of {kills} kills, {len(torture.wrong)} wrong")
    if damages:
        pristine = folder / "pristine"
        once(check, pristine)
    while torture.counts["damages"] < damages:
        torture.damage(min(PER_START, damages - torture.counts["damages"]), pristine)
        tell(f"{torture.counts['damages']} of {damages} damages, {len(torture.wrong)} wrong")
    seconds = time.monotonic() - begun_s
    return {
        **torture.counts,
        "wrong": torture.wrong,
        "slowest_ready_s": torture.slowest_s,
        "seconds": seconds,
    }


def main() -> int:
    """Torture for as long as it takes, and say what held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--damages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--path", type=Path, help="a folder on the disk to use; a temporary one if not given")
    add_output_options(parser, "torture")
    options = parser.parse_args()
    torch.set_num_threads(1)

    def tell(line: str) -> None:
        sys.stderr.write(line + "\n")

    with tempfile.TemporaryDirectory(dir=options.path, prefix="tokenvm-torture-") as folder:
        figures = run(Path(folder), options.kills, options.damages, options.seed, tell)
    holds = not figures["wrong"] and figures["slowest_ready_s"] <= READY_S
    rows = [[name, f"{value:,}"] for name, value in figures.items() if isinstance(value, int)]
    rows.append(["slowest start", f"{figures['slowest_ready_s']:.2f} s"])
    rows.append(["nothing wrong", "yes" if holds else "NO"])
    notes = figures["wrong"][:10]
    finish(
        Report("torture", {**figures, "machine": machine()}, [Grid(("torture", "count"), rows)], notes),
        options.write,
        as_json=True,
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
