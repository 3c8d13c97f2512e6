"""Mixed traffic for minutes over a disk tier that is too small and fails: is everybody answered, and right?

Conversations come back, fresh prompts come, some are broken off; together they are more than ten times what memory
holds and more than the disk may. Of all copies below the device a hundredth fails. A second engine, with room for all
and no faults, says what each answer must be.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from output_options import add_output_options

from tokenvm.bench.report import Grid, Report, finish, machine
from tokenvm.bench.toy import VOCAB_SIZE, tiny_model
from tokenvm.config import MemoryConfig
from tokenvm.engine.engine import Engine
from tokenvm.engine.launch import Settings, build_engine, needs_of
from tokenvm.memory.faulty import FaultyDevice
from tokenvm.schedule.plan import FinishedEvent, TokenEvent
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams

BLOCK_TOKENS, DEVICE_PAGES, HOST_PAGES, DISK_BYTES = 16, 32, 24, 24 << 20
TURNS, TURN_TOKENS = 18, 24
PAGE_MOVES_WANTED = 100_000


@dataclass(frozen=True)
class Asked:
    """A prompt and how many tokens are wanted; equal ones must be answered alike."""

    text: int
    tokens: int
    answer: int

    @property
    def request(self) -> tuple[tuple[int, ...], SamplingParams]:
        """Its tokens, and what is asked of them."""
        rng = random.Random(self.text)
        ids = tuple(rng.randrange(3, VOCAB_SIZE) for _ in range(self.tokens))
        return ids, SamplingParams(temperature=0, max_tokens=self.answer, ignore_eos=True)


class Oracle:
    """An engine with room for all and no tier below; remembers what it said."""

    def __init__(self) -> None:
        memory = MemoryConfig(nvme_limit=0, host_memory=0, block_tokens=BLOCK_TOKENS)
        self._engine = build_engine(tiny_model(), Settings(memory, Path("unused"), threads=1, max_num_seqs=2))
        self._said: dict[Asked, list[int]] = {}

    def says(self, asked: Asked) -> list[int]:
        """Return the tokens of the right answer."""
        if asked not in self._said:
            self._engine.add(Request("one", *asked.request))
            said = self._said[asked] = []
            while self._engine.has_work:
                said += [e.token for e in self._engine.step().events if isinstance(e, TokenEvent)]
        return self._said[asked]


@dataclass
class Sample:
    """What is seen from outside at one moment."""

    at_s: float
    disk_bytes: int
    resident_bytes: int


@dataclass
class Traffic:
    """Who asks, who is answered, and with what."""

    rng: random.Random
    texts: int
    flying: dict[str, Asked] = field(default_factory=dict)
    said: dict[str, list[int]] = field(default_factory=dict)
    answered: int = 0
    wrong: int = 0
    broken_off: int = 0
    failed: list[str] = field(default_factory=list)
    asked: int = 0

    def ask(self, engine: Engine) -> None:
        """Go on with a conversation, or begin one."""
        text = self.rng.randrange(self.texts)
        asked = Asked(text, TURN_TOKENS * self.rng.randint(1, TURNS), self.rng.choice((4, 8, 12)))
        name = f"request-{self.asked}"
        self.asked += 1
        ids, params = asked.request
        engine.add(Request(name, ids, params, priority=self.rng.choice((0, 0, 0, 1))))
        self.flying[name], self.said[name] = asked, []

    def break_off(self, engine: Engine) -> None:
        """End a request before it has."""
        name = self.rng.choice(list(self.flying))
        engine.abort(name)
        self._forget(name)
        self.broken_off += 1

    def hear(self, engine: Engine, oracle: Oracle) -> None:
        """Take a step, and compare the answers that it completes."""
        result = engine.step()
        for name, error in result.failures.items():
            self.failed.append(str(error))
            self._forget(name)
        for event in result.events:
            if event.request_id not in self.flying:
                continue
            if isinstance(event, TokenEvent):
                self.said[event.request_id].append(event.token)
            elif isinstance(event, FinishedEvent):
                right = oracle.says(self.flying[event.request_id])
                self.wrong += self.said[event.request_id] != right
                self.answered += 1
                self._forget(event.request_id)

    def _forget(self, name: str) -> None:
        del self.flying[name], self.said[name]


@contextmanager
def soaking(folder: Path, rate: float, seed: int) -> Iterator[tuple[Engine, FaultyDevice, int]]:
    """Lend an engine on faulty tiers, its device, and the bytes of a page."""
    model = tiny_model()
    asked = MemoryConfig(block_tokens=BLOCK_TOKENS)
    page = needs_of(model, Settings(asked, folder))[0].page_bytes
    memory = MemoryConfig(
        block_tokens=BLOCK_TOKENS,
        kv_limit=2 * DEVICE_PAGES * page,
        kv_cache_num_tokens="auto",
        host_memory=HOST_PAGES * page,
        nvme_path=folder,
        nvme_limit=DISK_BYTES,
    )
    device = FaultyDevice(rate, seed)
    limits = {"max_num_seqs": 8, "max_tokens_per_forward": 128, "threads": 1}
    settings = Settings(memory, folder, lookahead=False, keep_pages=True, **limits)
    engine = build_engine(model, settings, device)
    try:
        yield engine, device, page
    finally:
        engine.close()


def disk_bytes(folder: Path) -> int:
    """Return the bytes that a folder takes on disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def resident_bytes() -> int:
    """Return the bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def page_moves(engine: Engine, page: int) -> int:
    """Return how many pages' worth of bytes have moved between tiers."""
    return sum(engine.account.moved_bytes.values()) // page


def run(
    seconds: float, folder: Path, texts: int, rate: float, seed: int, progress: bool = True
) -> dict[str, Any]:
    """Soak, then let everybody end; return the figures."""
    oracle, traffic, samples = Oracle(), Traffic(random.Random(seed), texts), []
    begun_s = told_s = time.monotonic()
    with soaking(folder, rate, seed) as (engine, device, page):
        while (now_s := time.monotonic()) - begun_s < seconds or traffic.flying:
            late = now_s - begun_s >= seconds
            while len(traffic.flying) < 12 and not late:
                traffic.ask(engine)
            if traffic.rng.random() < 0.002:
                traffic.break_off(engine)
            traffic.hear(engine, oracle)
            if not samples or now_s - begun_s - samples[-1].at_s >= min(1.0, seconds / 50):
                samples.append(Sample(now_s - begun_s, disk_bytes(folder), resident_bytes()))
            if progress and now_s - told_s >= 5:
                told_s = now_s
                tell(traffic, samples[-1], page_moves(engine, page), seconds)
        figures = figures_of(engine, device, page, traffic, samples)
    return {"texts": texts, "fault_rate": rate, "seconds": time.monotonic() - begun_s, **figures}


def tell(traffic: Traffic, sample: Sample, moves: int, seconds: float) -> None:
    """Print where it stands."""
    sys.stderr.write(
        f"{sample.at_s:6.0f} of {seconds:.0f} s: {traffic.answered:,} answered, {traffic.wrong} wrong, "
        f"{len(traffic.failed)} failed, {moves:,} page moves, {sample.disk_bytes / 1e6:.1f} MB on disk, "
        f"{sample.resident_bytes / 1e6:.0f} MB resident\n"
    )


def figures_of(
    engine: Engine, device: FaultyDevice, page: int, traffic: Traffic, samples: list[Sample]
) -> dict[str, Any]:
    """Return what came of it."""
    stats = engine.stats()
    settled_s = min(60.0, samples[-1].at_s / 5)
    early = max(s.resident_bytes for s in samples if s.at_s <= settled_s)
    late = max(s.resident_bytes for s in samples)
    working_set = traffic.texts * -(-TURNS * TURN_TOKENS // BLOCK_TOKENS)
    memory_pages = sum(stats["tiers"][tier]["capacity_bytes"] for tier in ("device", "host")) // page
    return {
        "asked": traffic.asked,
        "answered": traffic.answered,
        "broken_off": traffic.broken_off,
        "wrong": traffic.wrong,
        "failed": len(traffic.failed),
        "page_moves": page_moves(engine, page),
        "working_set_of_memory": working_set / memory_pages,
        "working_set_of_disk": working_set * page / DISK_BYTES,
        "nvme_limit": DISK_BYTES,
        "most_disk_bytes": max(s.disk_bytes for s in samples),
        "resident_bytes": early,
        "resident_growth_bytes": late - early,
        "injected": device.injected,
        "faults": {tier: stats["tiers"][tier]["faults"] for tier in ("host", "disk")},
        "switched_off": {tier: stats["tiers"][tier]["switched_off"] for tier in ("host", "disk")},
        "set_back": stats["set_back_sequences"],
        "lost_pages": engine.account.lost_pages,
        "hit_tokens": stats["prefix_cache"]["hit_tokens"],
        "samples": len(samples),
    }


def verdict(figures: dict[str, Any], moves_wanted: int) -> dict[str, bool]:
    """Say of each thing that was wanted whether it holds."""
    asked = figures["asked"] - figures["broken_off"]
    return {
        "all answered, all right": figures["answered"] == asked and not figures["wrong"],
        "disk within its limit": figures["most_disk_bytes"] <= figures["nvme_limit"],
        "resident memory flat": figures["resident_growth_bytes"] <= 0.05 * figures["resident_bytes"],
        f"{moves_wanted:,} page moves": figures["page_moves"] >= moves_wanted,
        "faults were injected": sum(figures["injected"].values()) > 0,
    }


def report_of(figures: dict[str, Any], holds: dict[str, bool]) -> Report:
    """Return the card."""
    shown = ("asked", "answered", "wrong", "failed", "broken_off", "page_moves", "lost_pages", "set_back")
    rows = [[name.replace("_", " "), f"{figures[name]:,}"] for name in shown]
    rows.append(["most on disk, of its limit", f"{figures['most_disk_bytes'] / figures['nvme_limit']:.1%}"])
    rows.append(["resident", f"{figures['resident_bytes'] / 1e6:.0f} MB"])
    rows.append(["growth after the first minute", f"{figures['resident_growth_bytes'] / 1e6:.1f} MB"])
    rows.append(["faults injected", f"{sum(figures['injected'].values()):,}"])
    rows += [[name, "yes" if held else "NO"] for name, held in holds.items()]
    return Report("soak", {**figures, "holds": holds}, [Grid(("soak", f"{figures['seconds']:.0f} s"), rows)])


def main() -> int:
    """Soak for as long as is asked, and say what held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--fault-rate", type=float, default=0.01)
    parser.add_argument("--texts", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--path", type=Path, help="a folder on the disk to soak; a temporary one if not given"
    )
    add_output_options(parser, "soak")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.path, prefix="tokenvm-soak-") as folder:
        rest = (options.texts, options.fault_rate, options.seed)
        figures = run(60 * options.minutes, Path(folder), *rest)
    holds = verdict(figures, int(PAGE_MOVES_WANTED * min(1.0, options.minutes / 5)))
    finish(report_of({**figures, "machine": machine()}, holds), options.write, as_json=True)
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
