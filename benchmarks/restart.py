"""Time to the first token of a long prefix that an earlier process left on disk, against what its bytes take to read.

One process computes the prompts and ends. Then, for each prompt, an engine is started anew: it finds the prefix on
disk, reads it, and computes the one token behind it. Beside it, in the same round: the disk's best rate, and the same
prompt once more, when its prefix lies on the device: one step. The floor is bytes / (0.85 x that rate) + 1.25 steps.

Also: the same prompts computed with and without a disk that keeps them, in turn; the same pages read with and without
their checksums compared, in turn; and how long taking over ten thousand pages takes.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from output_options import add_output_options

from tokenvm.bench.figures import Spread, paired_ratios, spread
from tokenvm.bench.floor import probing
from tokenvm.bench.report import Grid, Report, finish, machine
from tokenvm.bench.subject import turn
from tokenvm.config import MemoryConfig
from tokenvm.llm import LLM
from tokenvm.machine import usable_cores
from tokenvm.memory.backend import Check, Copies
from tokenvm.memory.cpu import CpuDevice
from tokenvm.memory.kept_disk import Keep, KeptDiskStore
from tokenvm.memory.kept_folder import inspect_folder
from tokenvm.memory.kept_size import geometry_of_store, limit_for
from tokenvm.memory.layout import PageLayout
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.vocab import Answer, PageKey, SlotId

FIRST = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
READ_SHARE, STEPS = 0.85, 1.25


@dataclass
class Round:
    """One restart, in seconds and bytes."""

    start_s: float
    warm_s: float
    warm_pages: int
    disk_s: float
    step_s: float
    read_bytes: int
    bytes_per_s: float

    @property
    def floor_s(self) -> float:
        """What it may take."""
        return self.read_bytes / (READ_SHARE * self.bytes_per_s) + STEPS * self.step_s


def prompt_of(number: int, tokens: int) -> list[int]:
    """Return ids that no other prompt begins with."""
    return [1000 + (number * 7919 + at * 31 + at // 97) % 40_000 for at in range(tokens)]


def opened(options: argparse.Namespace, folder: Path | None) -> LLM:
    """Start an engine on a folder that keeps pages, or without a disk, with room for one prompt on the device."""
    memory = MemoryConfig(nvme_limit=0, kv_limit=options.kv_limit)
    if folder is not None:
        memory = MemoryConfig(nvme_path=folder, nvme_limit=options.nvme_limit, kv_limit=options.kv_limit)
    return LLM(options.model, memory=memory, max_num_seqs=1, threads=options.threads, warm_up=True)


def compute(options: argparse.Namespace, folder: Path) -> None:
    """Compute every prompt and leave its pages; print the seconds to each first token, without a disk and with."""
    with opened(options, folder) as llm, opened(options, None) as plain:
        for number in range(options.rounds):
            with turn(options.lock):
                ids = prompt_of(number, options.tokens)
                sys.stdout.write(f"{first_token_s(plain, ids)} {first_token_s(llm, ids)}\n")


def first_token_s(llm: LLM, ids: list[int]) -> float:
    """Return the seconds to the first token."""
    (out,) = llm.generate([{"prompt_token_ids": ids}], FIRST, use_tqdm=False)
    assert out.metrics is not None
    return out.metrics.ttft_s


def restarted(options: argparse.Namespace, folder: Path, number: int, probe: Any) -> Round:
    """Start an engine and ask for one prompt twice: its prefix is on disk, then on the device."""
    ids = prompt_of(number, options.tokens)
    began_s = time.monotonic()
    with opened(options, folder) as llm:
        options.layout = llm.engine.kvcache.vm.layout
        start_s = time.monotonic() - began_s
        kept = llm.stats()["kept"]
        before = probe.rates()["disk_bytes_per_s"]
        read_before = llm.stats()["moved_bytes"]["nvme_read"]
        disk_s = first_token_s(llm, ids)
        stats = llm.stats()
        read = stats["moved_bytes"]["nvme_read"] - read_before
        if stats["prefix_cache"]["hit_tokens"]["disk"] < options.tokens - 129:
            raise SystemExit(f"the prefix was not found on disk: {stats['prefix_cache']}")
        after = probe.rates()["disk_bytes_per_s"]
        step_s = min(first_token_s(llm, ids) for _ in range(3))
    return Round(start_s, kept["warm_s"], kept["warm_pages"], disk_s, step_s, read, max(before, after))


def read_rates(folder: Path, layout: PageLayout, rounds: int) -> tuple[list[float], list[float]]:
    """Return bytes a second of reading the pages of a folder, in turn without and with their checksums compared."""
    (model,) = inspect_folder(folder).models
    keep = Keep(bytes.fromhex(model), read_only=True)
    store, device = KeptDiskStore(folder, 0, layout, keep), CpuDevice()
    slots = np.array([page.slot for page in store.register.found][: (256 << 20) // layout.page_bytes])
    region = device.allocate(len(slots) * layout.page_bytes)
    places = store.places(slots[None, :], np.arange(layout.layers)[:, None])
    count = places.place.size

    def seconds(check: Check) -> float:
        copies = Copies(
            kind=places.kind.ravel(),
            check=np.full(count, check, np.uint8),
            fd=np.ascontiguousarray(places.fd).ravel(),
            place=places.place.ravel(),
            address=region.address + np.arange(count, dtype=np.uint64) * np.uint64(layout.part_stride),
            nbytes=np.full(count, layout.part_stride, np.uint64),
            checksum=store.checksums[slots].T.ravel(),
        )
        began_s = time.monotonic()
        answer = device.copies().submit(copies, urgent=True).wait()
        took_s = time.monotonic() - began_s
        assert answer is Answer.HIT
        return took_s

    try:
        seconds(Check.NONE)
        pairs = [(seconds(Check.NONE), seconds(Check.VERIFY)) for _ in range(rounds)]
    finally:
        device.close()
        store.close()
    nbytes = count * layout.part_stride
    return [nbytes / plain for plain, _ in pairs], [nbytes / checked for _, checked in pairs]


def takeover_s(folder: Path, pages: int) -> float:
    """Return the seconds that opening a store of so many pages takes, prefixes of 64 pages, 30 parts each."""
    layout, keep = PageLayout(30, 4096), Keep(bytes(16))
    limit = limit_for(pages, geometry_of_store(layout))
    store = KeptDiskStore(folder, limit, layout, keep)
    store.ensure(store.capacity)
    parent = PageKey(b"")
    for slot in range(store.capacity):
        key = PageKey(random.randbytes(16))
        store.register.remember(SlotId(slot), key, parent if slot % 64 else PageKey(b""))
        parent = key
    store.close()
    began_s = time.monotonic()
    again = KeptDiskStore(folder, limit, layout, keep)
    took_s = time.monotonic() - began_s
    if len(again.register.found) != again.capacity:
        raise SystemExit(f"{len(again.register.found)} of {again.capacity} pages were found")
    again.close()
    return took_s


def report(
    rounds: list[Round], computed: list[list[float]], more: dict[str, Any], options: argparse.Namespace
) -> Report:
    """Put medians and ratios into a table; `computed` are seconds without and with a disk."""
    computed_s = [kept for _, kept in computed]
    figures = {
        "bench": "restart",
        "tokens": options.tokens,
        "rounds": [vars(r) | {"floor_s": r.floor_s} for r in rounds],
        "computed_s": computed,
        "keeping": paired_ratios(computed_s, [plain for plain, _ in computed]),
        "checking": paired_ratios(more["unchecked_bytes_per_s"], more["checked_bytes_per_s"]),
        **more,
        "of_floor": paired_ratios([r.disk_s for r in rounds], [r.floor_s for r in rounds]),
        "sooner": paired_ratios(computed_s, [r.disk_s for r in rounds]),
        "machine": machine(),
    }
    names = ("computed", "from disk after a restart", "floor", "of floor", "sooner", "step", "disk")
    grid = Grid(names, [_cells(rounds, computed_s, figures)])
    return Report("restart", figures, [grid], [_note(rounds, figures, options)])


def _cells(rounds: list[Round], computed_s: list[float], figures: dict[str, Any]) -> list[str]:
    disk, floor = spread([r.disk_s for r in rounds]), spread([r.floor_s for r in rounds])
    step, rate = spread([r.step_s for r in rounds]), spread([r.bytes_per_s for r in rounds])
    return [
        f"{spread(computed_s).mid:.2f} s",
        f"{disk.mid * 1e3:.0f} ms ({disk.low * 1e3:.0f} to {disk.high * 1e3:.0f})",
        f"{floor.mid * 1e3:.0f} ms",
        _ratio(figures["of_floor"]),
        f"{figures['sooner'].mid:.0f} x",
        f"{step.mid * 1e3:.0f} ms",
        f"{rate.mid / 1e9:.2f} GB/s",
    ]


def _note(rounds: list[Round], figures: dict[str, Any], options: argparse.Namespace) -> str:
    warm = spread([r.warm_s for r in rounds])
    return (
        f"First token of {options.tokens:,} tokens, {len(rounds)} rounds, medians. "
        f"{rounds[0].read_bytes / 1e6:.0f} MB are read. "
        f"Taking over {rounds[-1].warm_pages} pages took {warm.mid * 1e3:.0f} ms of the start; "
        f"taking over {options.pages:,} took {figures['takeover_s']:.2f} s. "
        f"Computing with a disk that keeps the pages: {_ratio(figures['keeping'])} of the time without one. "
        f"Reading pages with checksums compared: {_ratio(figures['checking'])} of the time without."
    )


def _ratio(found: Spread) -> str:
    return f"{found.mid:.2f} x ({found.low:.2f} to {found.high:.2f})"


def arguments() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=8065, help="of each prompt: whole pages and one token")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--pages", type=int, default=10_000, help="of the store whose taking over is timed")
    parser.add_argument("--kv-limit", default="240MB")
    parser.add_argument("--nvme-limit", default="4GB")
    parser.add_argument("--folder", type=Path, help="a disk to measure; by default a temporary folder")
    parser.add_argument("--compute", type=Path, help=argparse.SUPPRESS)
    add_output_options(parser, "restart")
    return parser


def main() -> None:
    """Measure; or, as the process that ends before, compute."""
    options = arguments().parse_args()
    if options.compute:
        compute(options, options.compute)
        return
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as name,
        probing(Path(name), options.threads) as probe,
    ):
        folder = Path(name) / "kv"
        before = subprocess.run(
            [sys.executable, *sys.argv, "--compute", str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        computed = [[float(word) for word in line.split()] for line in before.stdout.splitlines()]
        rounds = []
        for number in range(options.rounds):
            with turn(options.lock):
                rounds.append(restarted(options, folder, number, probe))
        with turn(options.lock):
            plain, checked = read_rates(folder, options.layout, 3 * options.rounds)
            more = {"takeover_s": takeover_s(Path(name) / "many", options.pages)}
        more |= {"unchecked_bytes_per_s": plain, "checked_bytes_per_s": checked}
        finish(report(rounds, computed, more, options), options.write, options.json)


if __name__ == "__main__":
    main()
