"""Conversations that come back: how long until the first token, with KV memory for a fifth of them.

    PYTHONPATH=src python benchmarks/returning.py --peer-python vllm=/path/to/venv/bin/python --rounds 3

Each conversation begins with a long prompt; then every one of them in turn gets a few new tokens and answers, several
times over. TokenVM keeps the rest of the KV on disk; a peer gets the same bytes of KV memory. The first turn, which
nobody can have cached, is not part of the figures of returning turns. TokenVM's tokens must be those it gives with all
KV in memory.
"""

# ruff: noqa: T201 - it prints its findings
from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from output_options import add_output_options
from peers.worker import PeerError, Worker
from peers.workloads import random_prompt

from tokenvm.bench.figures import Spread, paired_ratios, spread
from tokenvm.bench.report import Grid, Report, finish, machine
from tokenvm.bench.subject import open_subject, turn
from tokenvm.config import MemoryConfig
from tokenvm.machine import usable_cores
from tokenvm.models.fetch import resolve_model

OURS, UNLIMITED = "tokenvm", "tokenvm, all in memory"


@dataclass
class Talk:
    """What one engine did in one round."""

    first_s: list[float] = field(default_factory=list)  # to the first token, of each returning turn
    total_s: float = 0.0
    tokens: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Script:
    """What the users will say: the same for every engine."""

    openings: list[list[int]]
    turns: list[list[list[int]]]  # [turn][conversation]
    answer: int

    @classmethod
    def random(cls, options: argparse.Namespace, rng: random.Random) -> Script:
        """Draw token ids."""
        openings = [random_prompt(rng, options.prompt) for _ in range(options.conversations)]
        turns = [[random_prompt(rng, options.said) for _ in openings] for _ in range(options.turns)]
        return cls(openings, turns, options.answer)


def converse(worker: Worker, script: Script) -> Talk:
    """Hold all conversations, one request at a time, round robin."""
    talk = Talk()
    histories = [list(opening) for opening in script.openings]
    for said in (None, *script.turns):
        for number, history in enumerate(histories):
            if said is not None:
                history += said[number]
            first, first_s = worker.complete(history, 1)
            rest, rest_s = worker.complete([*history, *first], script.answer - 1)
            history += [*first, *rest]
            talk.total_s += first_s + rest_s
            if said is not None:
                talk.first_s.append(first_s)
    talk.tokens = [history[len(script.openings[0]) :] for history in histories]
    return talk


def contest(
    workers: dict[str, Worker], options: argparse.Namespace, skipped: dict[str, str]
) -> dict[str, list[Talk]]:
    """Let all engines do every round, in turn; one that fails is left out."""
    rng = random.Random(time.time_ns())
    found: dict[str, list[Talk]] = {}
    for number in range(options.rounds):
        script = Script.random(options, rng)
        for name in list(workers):
            if name == UNLIMITED and number:
                continue
            try:
                with turn(options.lock):
                    talk = converse(workers[name], script)
            except PeerError as why:
                skipped[name] = f"failed: {why}"
                found.pop(name, None)
                del workers[name]
                continue
            found.setdefault(name, []).append(talk)
            median = statistics.median(talk.first_s)
            print(
                f"round {number + 1}: {name}: first token {median:.3f} s, all {talk.total_s:.1f} s",
                flush=True,
            )
    if found[OURS][0].tokens != found[UNLIMITED][0].tokens:
        raise SystemExit("the tokens under the limit are not those with all KV in memory")
    return found


def report(found: dict[str, list[Talk]], options: argparse.Namespace, told: dict[str, Any]) -> Report:
    """Put medians and ratios into a table."""
    ours, rows = found[OURS], []
    for name, talks in found.items():
        if name == UNLIMITED:
            continue
        firsts = [statistics.median(talk.first_s) for talk in talks]
        totals = [talk.total_s for talk in talks]
        rows.append(
            {
                "engine": name,
                "first_token_s": spread(firsts),
                "total_s": spread(totals),
                "first_token_ratio": paired_ratios(
                    firsts, [statistics.median(talk.first_s) for talk in ours]
                ),
                "total_ratio": paired_ratios(totals, [talk.total_s for talk in ours]),
            }
        )
    figures = {"bench": "returning", "rows": rows, "machine": machine(), **told}
    note = (
        f"{options.conversations} conversations of {options.prompt:,} tokens, {options.turns} turns of {options.said} "
        f"in and {options.answer} out, one request at a time; {told['kv_bytes'] / 1e6:.0f} MB of KV memory, "
        f"{len(ours)} rounds in turn. Ratios are against TokenVM, of each round by itself. "
        + " ".join(f"{name}: skipped, {why}." for name, why in told["skipped"].items())
    )
    names = ("engine", "first token of a returning turn", "all turns", "first token, ratio", "all, ratio")
    return Report("returning", figures, [Grid(names, [_cells(row) for row in rows])], [note])


def _cells(row: dict[str, Any]) -> list[str]:
    first, total = Spread(*row["first_token_ratio"]), Spread(*row["total_ratio"])
    return [
        row["engine"],
        f"{row['first_token_s'][1]:.3f} s",
        f"{row['total_s'][1]:.1f} s",
        f"{first.mid:.2f} x ({first.low:.2f} to {first.high:.2f})",
        f"{total.mid:.2f} x ({total.low:.2f} to {total.high:.2f})",
    ]


def open_all(
    options: argparse.Namespace, stack: ExitStack, kv_bytes: int
) -> tuple[dict[str, Worker], dict[str, str]]:
    """Start every engine; return those that run, and why the others do not."""
    model, folder = resolve_model(options.model), Path(stack.enter_context(tempfile.TemporaryDirectory()))
    workers, skipped = {}, {}
    asked = {UNLIMITED: ("tokenvm", 0), OURS: ("tokenvm", kv_bytes)}
    asked |= {name: (name, kv_bytes) for name in dict(options.python)}
    for name, (driver, limit) in asked.items():
        python = options.python.get(name, sys.executable)
        worker = Worker(
            driver, python, model, options.threads, folder / f"{len(workers)}.log", kv_bytes=limit
        )
        stack.callback(worker.close)
        try:
            worker.start()
            workers[name] = worker
        except PeerError as why:
            skipped[name] = f"does not start: {why}"
    return workers, skipped


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peer-python", action="append", default=[], metavar="PEER=PYTHON")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=3000, help="tokens of each first prompt")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--said", type=int, default=64, help="new tokens of a turn")
    parser.add_argument("--answer", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--share", type=float, default=0.2, help="of all conversations, what KV memory holds")
    parser.add_argument("--rounds", type=int, default=3)
    add_output_options(parser, "returning")
    options = parser.parse_args()
    options.python = dict(one.split("=", 1) for one in options.peer_python)
    length = options.prompt + options.answer + options.turns * (options.said + options.answer)
    kv_bytes = open_subject(options.model, "auto", MemoryConfig(), None).kv_bytes(
        options.conversations * length, options.share
    )
    with ExitStack() as stack:
        workers, skipped = open_all(options, stack, kv_bytes)
        found = contest(workers, options, skipped)
        told = {
            "kv_bytes": kv_bytes,
            "skipped": skipped,
            "settings": {name: worker.settings for name, worker in workers.items()},
        }
        measured = report(found, options, told)
    finish(measured, options.write, options.json, width=160)


if __name__ == "__main__":
    main()
