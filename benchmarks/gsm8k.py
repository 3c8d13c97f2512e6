"""GSM8K with examples before each question, with and without shared-prefix attention.

    PYTHONPATH=src python benchmarks/gsm8k.py gsm8k_test.jsonl --questions 200

The first eight questions of the file are the examples, with their solutions; the following ones are asked, all at once
and greedy. Both ways answer in turn, in the same process, and must say the same. How many answers are exact is printed:
a model of 135 million parameters gets few of them right.
"""

# ruff: noqa: T201 - it prints its findings
from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from output_options import add_output_options

from tokenvm.bench.figures import spread
from tokenvm.bench.report import Grid, Report, finish, machine
from tokenvm.bench.subject import turn
from tokenvm.config import MemoryConfig
from tokenvm.llm import LLM, make_settings
from tokenvm.models.fetch import resolve_model
from tokenvm.models.weights.pack import load_model
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.tokenizer import Tokenizer

WAYS = {"shared pages read once": True, "each sequence alone": False}


def prompts_of(path: Path, shots: int, questions: int) -> tuple[list[str], list[str]]:
    """Return prompts with the examples in front, and the right answers."""
    tasks = [json.loads(line) for line in path.read_text().splitlines()[: shots + questions]]
    examples = "".join(f"Question: {one['question']}\nAnswer: {one['answer']}\n\n" for one in tasks[:shots])
    asked = tasks[shots:]
    return [f"{examples}Question: {one['question']}\nAnswer:" for one in asked], [
        final(one["answer"]) for one in asked
    ]


def final(answer: str) -> str:
    """Return the number that an answer ends with."""
    found = re.findall(r"-?[\d,]*\d(?:\.\d+)?", answer.split("####")[-1])
    return found[0].replace(",", "") if found else ""


def one_run(
    options: argparse.Namespace, shared: bool, loaded: Any, prompts: list[str]
) -> tuple[list[str], float, int]:
    """Answer all questions with a fresh engine; return texts, seconds and how many tokens were said."""
    model, tokenizer = loaded
    memory = MemoryConfig(nvme_limit=0, host_memory=0)
    settings = make_settings(memory, max_num_seqs=options.sequences)
    params = SamplingParams(temperature=0.0, max_tokens=options.tokens, stop=["\n\nQuestion:"])
    with LLM.from_loaded(model, tokenizer, replace(settings, shared_attention=shared)) as llm:
        began_s = time.monotonic()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.monotonic() - began_s
    answers = [output.outputs[0] for output in outputs]
    return [answer.text for answer in answers], seconds, sum(len(answer.token_ids) for answer in answers)


def report(rates: dict[str, list[float]], exact: float, options: argparse.Namespace) -> Report:
    """Put rates into a table."""
    alone = rates["each sequence alone"]
    rows = [
        {
            "way": way,
            "tokens_per_s": spread(values),
            "times_as_fast": spread([a / b for a, b in zip(values, alone, strict=True)]),
        }
        for way, values in rates.items()
    ]
    cells = [
        [
            row["way"],
            f"{row['tokens_per_s'][1]:.0f}",
            "{1:.2f} x ({0:.2f} to {2:.2f})".format(*row["times_as_fast"]),
        ]
        for row in rows
    ]
    note = (
        f"{options.questions} questions after {options.shots} examples, at most {options.tokens} tokens each, "
        f"{options.sequences} at once, {options.rounds} rounds in turn; both ways say the same, and "
        f"{exact:.1%} of the answers are exact."
    )
    figures = {"bench": "gsm8k", "rows": rows, "exact": exact, "machine": machine()}
    return Report("gsm8k", figures, [Grid(("attention", "tok/s", "against alone"), cells)], [note])


def main() -> None:
    """Measure both ways in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a JSONL file with a question and an answer on each line")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="the most tokens of an answer")
    parser.add_argument("--sequences", type=int, default=64, help="how many are answered at once")
    parser.add_argument("--rounds", type=int, default=3)
    add_output_options(parser, "gsm8k")
    options = parser.parse_args()
    folder = resolve_model(options.model)
    loaded = load_model(folder, "auto"), Tokenizer.from_folder(folder)
    prompts, right = prompts_of(options.file, options.shots, options.questions)
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    said: list[list[str]] = []
    for number in range(options.rounds):
        for way, shared in WAYS.items():
            with turn(options.lock):
                texts, seconds, tokens = one_run(options, shared, loaded, prompts)
            rates[way].append(tokens / seconds)
            said.append(texts)
            print(f"round {number + 1}: {way}: {tokens / seconds:.0f} tok/s", flush=True)
            if texts != said[0]:
                raise SystemExit(f"{way} says something else")
    exact = sum(final(text) == answer for text, answer in zip(said[0], right, strict=True)) / len(right)
    measured = report(rates, exact, options)
    finish(measured, options.write, options.json, width=160)


if __name__ == "__main__":
    main()
