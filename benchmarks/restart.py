"""Time to the first token of a long prefix that an earlier process left on disk, against what its bytes take to read.

One process computes the prompts and ends. Then, for each prompt, an engine is started anew: it finds the prefix on
disk, reads it, and computes the one token behind it. Beside it, in the same round: the disk's best rate, and the same
prompt once more, when its prefix lies on the device: one step. The floor is bytes / (0.85 x that rate) + 1.25 steps.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from output_options import add_output_options

from tokenvm.bench.figures import paired_ratios, spread
from tokenvm.bench.floor import probing
from tokenvm.bench.report import Grid, Report, finish, machine
from tokenvm.bench.subject import turn
from tokenvm.config import MemoryConfig
from tokenvm.llm import LLM
from tokenvm.machine import usable_cores
from tokenvm.schedule.sampling_params import SamplingParams

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


def opened(options: argparse.Namespace, folder: Path) -> LLM:
    """Start an engine on a folder that keeps pages, with room for one prompt on the device."""
    memory = MemoryConfig(nvme_path=folder, nvme_limit=options.nvme_limit, kv_limit=options.kv_limit)
    return LLM(options.model, memory=memory, max_num_seqs=1, threads=options.threads, warm_up=True)


def compute(options: argparse.Namespace, folder: Path) -> None:
    """Compute every prompt, print how long each first token took, and leave the pages behind."""
    with opened(options, folder) as llm:
        for number in range(options.rounds):
            with turn(options.lock):
                sys.stdout.write(f"{first_token_s(llm, prompt_of(number, options.tokens))}\n")


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


def report(rounds: list[Round], computed_s: list[float], options: argparse.Namespace) -> Report:
    """Put medians and ratios into a table."""
    ratio = paired_ratios([r.disk_s for r in rounds], [r.floor_s for r in rounds])
    faster = paired_ratios(computed_s, [r.disk_s for r in rounds])
    disk, floor = spread([r.disk_s for r in rounds]), spread([r.floor_s for r in rounds])
    computed, step = spread(computed_s), spread([r.step_s for r in rounds])
    rate, warm = spread([r.bytes_per_s for r in rounds]), spread([r.warm_s for r in rounds])
    cells = [
        f"{computed.mid:.2f} s",
        f"{disk.mid * 1e3:.0f} ms ({disk.low * 1e3:.0f} to {disk.high * 1e3:.0f})",
        f"{floor.mid * 1e3:.0f} ms",
        f"{ratio.mid:.2f} x ({ratio.low:.2f} to {ratio.high:.2f})",
        f"{faster.mid:.0f} x",
        f"{step.mid * 1e3:.0f} ms",
        f"{rate.mid / 1e9:.2f} GB/s",
    ]
    names = ("computed", "from disk after a restart", "floor", "of floor", "sooner", "step", "disk")
    figures = {
        "bench": "restart",
        "tokens": options.tokens,
        "rounds": [vars(r) | {"floor_s": r.floor_s} for r in rounds],
        "computed_s": computed_s,
        "of_floor": ratio,
        "sooner": faster,
        "machine": machine(),
    }
    note = (
        f"First token of {options.tokens:,} tokens, {len(rounds)} rounds, medians. "
        f"{rounds[0].read_bytes / 1e6:.0f} MB are read. "
        f"Taking over {rounds[-1].warm_pages} pages took {warm.mid * 1e3:.0f} ms of the start."
    )
    return Report("restart", figures, [Grid(names, [cells])], [note])


def arguments() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=8065, help="of each prompt: whole pages and one token")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cores())
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
        rounds = []
        for number in range(options.rounds):
            with turn(options.lock):
                rounds.append(restarted(options, folder, number, probe))
        finish(
            report(rounds, [float(line) for line in before.stdout.split()], options),
            options.write,
            options.json,
        )


if __name__ == "__main__":
    main()
