"""TokenVM and what a user would pick instead, on the same work, in turn, in one run.

    PYTHONPATH=src python benchmarks/compare.py --peer-python vllm=/path/to/venv/bin/python --rounds 3

Each peer runs in processes of its own: with this interpreter, or with the one given for it. Before anything is timed
its greedy tokens of five real prompts must equal those of Transformers, which is timed only where it is among the
peers. Each works at its best of 1 and of all
threads, found by a trial of each workload. Ratios are of each round by itself, since the machine itself changes.
"""

# ruff: noqa: T201 - it prints its findings
from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from output_options import add_output_options
from peers.worker import PeerError, Worker
from peers.workloads import (
    CHECKED_TOKENS,
    MEASURES,
    REAL_PROMPTS,
    WORKLOADS,
    advantages,
    best_threads,
    random_prompt,
)

from tokenvm.bench.figures import Spread, spread
from tokenvm.bench.report import Grid, Report, finish, machine
from tokenvm.bench.subject import turn
from tokenvm.machine import usable_cores
from tokenvm.models.fetch import resolve_model
from tokenvm.tokenizer import Tokenizer

OURS, JUDGE = "tokenvm", "transformers"
MODULES = {"tokenvm": "tokenvm", "vllm": "vllm", "transformers": "transformers", "openvino": "openvino_genai"}


class Contest:
    """All engines that can be measured, and why the others cannot."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.skipped: dict[str, str] = {}
        self.workers: dict[str, dict[int, Worker]] = {}
        self._folder = Path(options.stack.enter_context(tempfile.TemporaryDirectory()))

    def open(self, peer: str, model: Path) -> None:
        """Start a peer at every number of threads, one process after another; or note why not."""
        python = self.options.python.get(peer, sys.executable)
        if not _installed(python, MODULES[peer]):
            self.skipped[peer] = f"{MODULES[peer]} is not installed for {python}"
            return
        for threads in self.options.threads:
            print(f"starting {peer} with {threads} threads", flush=True)
            worker = Worker(peer, python, model, threads, self._folder / f"{peer}-{threads}.log")
            self.options.stack.callback(worker.close)
            try:
                with turn(self.options.lock):
                    worker.start()
            except PeerError as why:
                self.skipped[peer] = f"does not start: {why}"
                self.workers.pop(peer, None)
                return
            self.workers.setdefault(peer, {})[threads] = worker

    def agree(self, prompts: list[list[int]]) -> None:
        """Leave out whoever completes the real prompts otherwise than Transformers."""
        wanted: list[list[int]] = []
        for peer in sorted(self.workers, key=lambda name: name != JUDGE):
            for threads, worker in self.workers[peer].items():
                found = [worker.tokens([prompt], CHECKED_TOKENS)[0] for prompt in prompts]
                wanted = wanted or found
                if found != wanted:
                    odd = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
                    self.skipped[peer] = f"disagrees on real prompt {odd + 1} with {threads} threads"
        for peer in self.skipped:
            self.workers.pop(peer, None)
        if JUDGE not in self.options.peers.split(","):
            for worker in self.workers.pop(JUDGE).values():
                worker.close()

    def run(self, peer: str, threads: int, workload: str, rng: random.Random) -> dict[str, float]:
        """Measure one workload once; nothing is returned of a peer that fails, and it is left out from then on."""
        try:
            with turn(self.options.lock):
                return WORKLOADS[workload](self.workers[peer][threads], rng)
        except PeerError as why:
            self.skipped[peer] = f"failed in {workload}: {why}"
            print(f"{peer} {self.skipped[peer]}", flush=True)
            self.workers.pop(peer, None)
            return {}


def trial(contest: Contest, workloads: list[str], rng: random.Random) -> dict[str, dict[str, int]]:
    """Return peer → workload → the number of threads that serves it best; the first measure of a workload decides."""
    best: dict[str, dict[str, int]] = {}
    for peer, workers in list(contest.workers.items()):
        best[peer] = {}
        for threads, worker in workers.items():
            worker.seconds([random_prompt(rng, 64)], 8)
            print(f"{peer}, {threads} threads: {worker.settings}", flush=True)
        for workload in workloads:
            figures = {
                threads: contest.run(peer, threads, workload, rng) for threads in workers if len(workers) > 1
            }
            if peer not in contest.workers:
                break
            decisive = next(iter(next(iter(figures.values()), {})), "")
            best[peer][workload] = best_threads(figures, decisive) if figures else min(workers)
            print(f"trial of {peer}, {workload}: {figures} → {best[peer][workload]} threads", flush=True)
    return best


def rounds(
    contest: Contest, workloads: list[str], best: dict[str, dict[str, int]], rng: random.Random
) -> dict[str, dict[str, list[float]]]:
    """Return peer → measure → its figure of each round, of those that got through all of them."""
    figures: dict[str, dict[str, list[float]]] = {}
    for number in range(contest.options.rounds):
        for workload in workloads:
            for peer in list(contest.workers):
                for name, value in contest.run(peer, best[peer][workload], workload, rng).items():
                    figures.setdefault(peer, {}).setdefault(name, []).append(value)
                    print(f"round {number + 1}: {peer} {name} {value:.2f}", flush=True)
    return {peer: each for peer, each in figures.items() if peer in contest.workers}


def report(contest: Contest, figures: dict[str, dict[str, list[float]]], best: dict[str, Any]) -> Report:
    """Put medians and ratios into tables."""
    ours = figures[OURS]
    rows = [
        {
            "measure": name,
            "peer": peer,
            "figure": spread(values),
            "times_as_fast": spread(advantages(name, ours[name], values)),
        }
        for peer, measures in figures.items()
        for name, values in measures.items()
    ]
    settings = {p: {str(t): w.settings for t, w in each.items()} for p, each in contest.workers.items()}
    values = {
        "bench": "compare",
        "machine": machine(),
        "rounds": contest.options.rounds,
        "threads_tried": contest.options.threads,
        "rows": rows,
        "threads": best,
        "settings": settings,
        "skipped": contest.skipped,
    }
    return Report("compare", values, [_grid(rows, list(figures))], _notes(values))


def _grid(rows: list[dict[str, Any]], peers: list[str]) -> Grid:
    by = {(row["measure"], row["peer"]): row for row in rows}
    others = [peer for peer in peers if peer != OURS]
    names = ["", OURS, *(word for peer in others for word in (peer, f"{OURS} against {peer}"))]
    lines = []
    for name, measure in MEASURES.items():
        if (name, OURS) not in by:
            continue
        line = [measure.title, f"{by[name, OURS]['figure'][1]:.1f} {measure.unit}"]
        for peer in others:
            ratio = Spread(*by[name, peer]["times_as_fast"])
            line.append(f"{by[name, peer]['figure'][1]:.1f} {measure.unit}")
            line.append(f"{ratio.mid:.2f} x ({ratio.low:.2f} to {ratio.high:.2f})")
        lines.append(line)
    return Grid(names, lines)


def _notes(values: dict[str, Any]) -> list[str]:
    first = {peer: next(iter(each.values())) for peer, each in values["settings"].items()}
    versions = ", ".join(f"{peer} {settings.get('version', '')}".strip() for peer, settings in first.items())
    tried = " and ".join(map(str, values["threads_tried"]))
    skipped = [f"{peer}: skipped, {why}." for peer, why in values["skipped"].items()]
    return [
        f"Medians of {values['rounds']} rounds, in turn; ratios of each round by itself: above 1 TokenVM is faster. "
        f"Versions: {versions}. Each at its best of {tried} threads, with all KV in memory.",
        *skipped,
    ]


def _insist(contest: Contest) -> None:
    if OURS not in contest.workers:
        raise SystemExit(f"nothing is compared: {OURS} {contest.skipped[OURS]}")


def _installed(python: str, module: str) -> bool:
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
    try:
        return subprocess.run([python, "-c", look], check=False).returncode == 0
    except OSError:
        return False


def _options(stack: ExitStack) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = usable_cores()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peers", default="vllm,transformers", help="who is compared, comma separated")
    parser.add_argument("--peer-python", action="append", default=[], metavar="PEER=PYTHON")
    parser.add_argument("--threads", default=",".join(map(str, sorted({1, cores}))))
    parser.add_argument("--workloads", default="decode,long,batch,shared")
    parser.add_argument("--rounds", type=int, default=3)
    add_output_options(parser, "compare")
    options = parser.parse_args()
    options.python = dict(one.split("=", 1) for one in options.peer_python)
    options.threads = [int(one) for one in options.threads.split(",")]
    options.stack = stack
    for name, known in (("peers", MODULES), ("workloads", WORKLOADS)):
        unknown = set(getattr(options, name).split(",")) - set(known)
        if unknown:
            parser.error(f"--{name} {', '.join(sorted(unknown))}: use {', '.join(known)}")
    return options


def main() -> None:
    """Run the contest."""
    with ExitStack() as stack:
        options = _options(stack)
        model = resolve_model(options.model)
        tokenizer = Tokenizer.from_folder(model)
        contest = Contest(options)
        for peer in dict.fromkeys((JUDGE, *options.peers.split(","), OURS)):
            contest.open(peer, model)
        for needed in (JUDGE, OURS):
            if needed not in contest.workers:
                raise SystemExit(f"{needed} is needed and missing: {contest.skipped[needed]}")
        contest.agree([tokenizer.encode(text) for text in REAL_PROMPTS])
        _insist(contest)
        rng = random.Random(time.time_ns())
        workloads = options.workloads.split(",")
        best = trial(contest, workloads, rng)
        figures = rounds(contest, workloads, best, rng)
        _insist(contest)
        found = report(contest, figures, best)
    finish(found, options.write, options.json, width=160)


if __name__ == "__main__":
    main()
