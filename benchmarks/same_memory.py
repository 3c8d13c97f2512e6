"""The same KV memory, more work: paging below the device against admitting only what fits on it.

    PYTHONPATH=src python benchmarks/same_memory.py --rounds 3

Two loads, each with KV memory for a share of the first: several sequences that do not fit together, and one that does
not fit by itself. Both ways use the same kernels and the same scheduler; one has a disk below the device, the other
has nothing, so it lets sequences wait, and refuses what can never fit. Contexts beyond the model's training are fine
here: only times count. Greedy tokens of both ways must agree.
"""

# ruff: noqa: T201 - it prints its findings
from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from typing import Any

from output_options import add_output_options

from tokenvm.bench.figures import paired_ratios, spread
from tokenvm.bench.report import Grid, Report, finish, machine
from tokenvm.bench.subject import Subject, open_subject, turn
from tokenvm.config import MemoryConfig
from tokenvm.errors import RequestError
from tokenvm.llm import LLM, make_settings
from tokenvm.models.fetch import resolve_model
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.tokenizer import Tokenizer

PAGED, FITS = "paged", "only what fits"


@dataclass(frozen=True)
class Load:
    """So many prompts of so many tokens."""

    name: str
    prompts: list[list[int]]


@dataclass
class Found:
    """What one way did with one load, round by round."""

    seconds: list[float]
    tokens: list[list[int]]
    refused: str = ""


def memory_of(way: str, kv_bytes: int) -> MemoryConfig:
    """Return the same device memory, with a disk below it or nothing."""
    return MemoryConfig(kv_limit=kv_bytes, host_memory=0, nvme_limit="16GB" if way == PAGED else 0)


def serve(
    subject: Subject, way: str, load: Load, options: argparse.Namespace, kv_bytes: int, found: Found
) -> None:
    """Answer a load once, or learn that it is refused."""
    settings = make_settings(
        memory_of(way, kv_bytes), max_num_seqs=options.sequences, threads=options.threads
    )
    settings = replace(settings, enable_prefix_caching=False)
    params = SamplingParams(temperature=0.0, max_tokens=options.tokens, ignore_eos=True)
    with LLM.from_loaded(subject.model, Tokenizer.from_folder(resolve_model(options.model)), settings) as llm:
        began_s = time.monotonic()
        try:
            outputs = llm.generate(
                [{"prompt_token_ids": ids} for ids in load.prompts], params, use_tqdm=False
            )
        except RequestError as why:
            found.refused = str(why)
            return
        found.seconds.append(time.monotonic() - began_s)
        found.tokens = [output.outputs[0].token_ids for output in outputs]


def report(
    loads: list[Load], found: dict[str, dict[str, Found]], options: argparse.Namespace, kv: int
) -> Report:
    """Put seconds and ratios into a table."""
    rows = [row_of(load, way, found[load.name]) for load in loads for way in (PAGED, FITS)]
    grid = Grid(
        ("load", "KV memory", "seconds", "tokens a second", "paged is"), [_cells(row) for row in rows]
    )
    note = (
        f"{kv / 1e6:.0f} MB of KV memory, answers of {options.tokens} tokens, {options.rounds} rounds in turn. "
        + " ".join(
            f"{row['load']}, {row['way']}: refused, {row['refused']}" for row in rows if row["refused"]
        )
    )
    figures = {"bench": "same-memory", "kv_bytes": kv, "rows": rows, "machine": machine()}
    return Report("same-memory", figures, [grid], [note])


def row_of(load: Load, way: str, ways: dict[str, Found]) -> dict[str, Any]:
    """Tell what one way did, and how many times as fast paging was."""
    one, rival = ways[way], ways[FITS]
    row: dict[str, Any] = {"load": load.name, "way": way, "refused": one.refused}
    if one.refused:
        return row
    said = sum(map(len, one.tokens))
    row |= {"seconds": spread(one.seconds), "tokens_per_s": spread([said / each for each in one.seconds])}
    if way == PAGED and not rival.refused:
        row["times_as_fast"] = paired_ratios(rival.seconds, one.seconds)
    return row


def _cells(row: dict[str, Any]) -> list[str]:
    if row["refused"]:
        return [row["load"], row["way"], "refused", "-", ""]
    ratio = row.get("times_as_fast")
    told = "{1:.2f} x ({0:.2f} to {2:.2f}) as fast".format(*ratio) if ratio else ""
    return [row["load"], row["way"], f"{row['seconds'][1]:.1f} s", f"{row['tokens_per_s'][1]:.2f}", told]


def loads_of(subject: Subject, options: argparse.Namespace) -> list[Load]:
    """Return the sequences that do not fit together, and the one that does not fit alone."""
    many = [subject.ids(options.prompt, seed) for seed in range(options.sequences)]
    return [
        Load(f"{options.sequences} x {options.prompt:,}", many),
        Load(f"1 x {options.long:,}", [subject.ids(options.long, options.sequences)]),
    ]


def main() -> None:
    """Measure both ways in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=8000, help="tokens of each of them")
    parser.add_argument("--long", type=int, default=32000, help="tokens of the one that does not fit alone")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--share", type=float, default=0.25, help="of the sequences' KV, what memory holds")
    parser.add_argument("--rounds", type=int, default=3)
    add_output_options(parser, "same-memory")
    options = parser.parse_args()
    subject = open_subject(options.model, "auto", MemoryConfig(), options.threads)
    subject = subject.beyond_training(options.long + options.tokens)
    kv = subject.kv_bytes(options.sequences * (options.prompt + options.tokens), options.share)
    loads = loads_of(subject, options)
    found = {load.name: {way: Found([], []) for way in (PAGED, FITS)} for load in loads}
    for number in range(options.rounds):
        for load in loads:
            for way in (PAGED, FITS):
                with turn(options.lock):
                    serve(subject, way, load, options, kv, found[load.name][way])
                one = found[load.name][way]
                told = one.refused or f"{one.seconds[-1]:.1f} s"
                print(f"round {number + 1}: {load.name}, {way}: {told}", flush=True)
            paged, fits = found[load.name][PAGED], found[load.name][FITS]
            if not fits.refused and paged.tokens != fits.tokens:
                raise SystemExit("the two ways say different things")
    finish(report(loads, found, options, kv), options.write, options.json, width=160)


if __name__ == "__main__":
    main()
