"""A crowd of streaming clients against a server: how long each waits, and what all of them get a second.

The same prompts are answered by `LLM.generate` in turn, in this process and under the same limits; what sampled clients
heard must be the tokens that it says. The clients are on this machine: what they take counts against the server.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from rich.console import Console

from tokenvm.bench.figures import paired_ratios, percentile, spread
from tokenvm.bench.report import Grid, Report, machine
from tokenvm.bench.served_process import ServedProcess, served_process
from tokenvm.bench.stream_client import Heard, hear_all
from tokenvm.bench.subject import turn
from tokenvm.config import MemoryConfig
from tokenvm.errors import EngineDeadError
from tokenvm.llm import LLM
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.sizes import format_size

SHARES: Final = (0.5, 0.99)


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many clients ask at once, and for what: token ids in, so many tokens out. `sampled` of them are checked."""

    clients: int
    prompt_tokens: int
    tokens: int
    sampled: int = 50


@dataclass(frozen=True, slots=True)
class Limits:
    """What both ways run under: `memory` has the settings in force, `kv_limit` what the command line asks for."""

    memory: MemoryConfig
    kv_limit: str | None = None
    max_num_seqs: int | None = None
    threads: int | None = None
    lock: Path | None = None


@dataclass
class _Found:
    offline_s: list[float] = field(default_factory=list)
    served_s: list[float] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    checked: int = 0
    different: int = 0
    peak_bytes: dict[str, int] = field(default_factory=dict)


def measure(model: str, limits: Limits, crowd: Crowd, rounds: int, console: Console) -> Report:
    """Measure `rounds` rounds, both ways in turn.

    Raises EngineDeadError where no server comes up or no client gets an answer.
    """
    found = _Found()
    llm = LLM(
        model,
        memory=limits.memory,
        max_num_seqs=limits.max_num_seqs,
        threads=limits.threads,
        warm_up=True,
    )
    with llm, served_process(model, _options(limits)) as served:
        for number in range(rounds):
            _round(llm, served, crowd, number, found, limits.lock)
            said = f"round {number + 1}: LLM.generate {found.offline_s[-1]:.2f} s, served {found.served_s[-1]:.2f} s"
            console.print(said)
        found.peak_bytes = served.peak_bytes
        over = crowd.clients * (crowd.prompt_tokens + crowd.tokens) / llm.plan.kv_cache_num_tokens
    return _report(found, crowd, rounds, over)


def _options(limits: Limits) -> list[str]:
    given = {
        "kv-limit": limits.kv_limit,
        "max-num-seqs": limits.max_num_seqs,
        "threads": limits.threads,
    }
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [*words, "--no-log-requests", "--max-waiting=100000"]


def _round(
    llm: LLM, served: ServedProcess, crowd: Crowd, number: int, found: _Found, lock: Path | None
) -> None:
    """Both ways over prompts that neither has seen."""
    words = range(llm.model.spec.vocab_size)
    prompts = [
        Random(number * crowd.clients + at).choices(words, k=crowd.prompt_tokens)
        for at in range(crowd.clients)
    ]
    params = SamplingParams(temperature=0, max_tokens=crowd.tokens, ignore_eos=True)
    with turn(lock):
        began_s = time.monotonic()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        found.offline_s.append(time.monotonic() - began_s)
    with turn(lock):
        began_s = time.monotonic()
        heard = hear_all(served.url, [_body(ids, crowd.tokens) for ids in prompts])
        found.served_s.append(time.monotonic() - began_s)
    found.heard += heard
    for at in Random(number).sample(range(crowd.clients), min(crowd.sampled, crowd.clients)):
        found.checked += 1
        found.different += heard[at].tokens != outputs[at].outputs[0].token_ids


def _body(ids: Sequence[int], tokens: int) -> dict[str, Any]:
    return {
        "prompt": ids,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
    }


def _report(found: _Found, crowd: Crowd, rounds: int, over: float) -> Report:
    whole = [one for one in found.heard if not one.problem and len(one.tokens) == crowd.tokens]
    if not whole:
        problem = found.heard[0].problem
        raise EngineDeadError(f"no client got its answer ({problem}): type `tokenvm serve` to see why")
    waits = _waits(whole)
    grid = Grid(
        ("ms", *(f"p{share * 100:.0f}" for share in SHARES)),
        [[name, *(f"{value:.1f}" for value in row.values())] for name, row in waits.items()],
    )
    figures = {
        "bench": "serve",
        **asdict(crowd),
        "rounds": rounds,
        "working_set": over,
        "waits": waits,
        "offline_s": found.offline_s,
        "served_s": found.served_s,
        "of_offline": paired_ratios(found.offline_s, found.served_s),
        "failed": len(found.heard) - len(whole),
        "checked": found.checked,
        "different": found.different,
        "peak_bytes": found.peak_bytes,
        "machine": machine(),
    }
    said = f"{len(whole)} of {len(found.heard)} answers whole"
    return Report("serve", figures, [grid], _notes(found, crowd, rounds, over, said))


def _waits(whole: Sequence[Heard]) -> dict[str, dict[str, float]]:
    """Return what to wait for → shares of all waits, in ms."""
    times = {
        "first token": [one.first_s for one in whole],
        "between events": [gap for one in whole for gap in one.gaps_s] or [0.0],
        "whole answer": [one.end_s for one in whole],
    }
    return {
        name: {f"p{share * 100:.0f}_ms": percentile(values, share) * 1000 for share in SHARES}
        for name, values in times.items()
    }


def _notes(found: _Found, crowd: Crowd, rounds: int, over: float, said: str) -> list[str]:
    made = crowd.clients * crowd.tokens
    served, offline = made / spread(found.served_s).mid, made / spread(found.offline_s).mid
    ratio = paired_ratios(found.offline_s, found.served_s)
    peaks = ", ".join(f"{name} {format_size(size)}" for name, size in found.peak_bytes.items())
    return [
        f"{crowd.clients} clients at once, {crowd.prompt_tokens} tokens in and {crowd.tokens} out, {rounds} rounds. "
        f"KV of all: {over:.2g} x what the device holds. {said}.",
        f"{served:.0f} tokens a second streamed, {offline:.0f} by LLM.generate: {ratio.mid:.3f} of it "
        f"({ratio.low:.3f} to {ratio.high:.3f}). {found.checked - found.different} of {found.checked} sampled "
        "answers are what LLM.generate says.",
        f"Most memory: {peaks}.",
    ]
