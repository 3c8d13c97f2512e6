"""Answers that must follow the schemas of a public suite: jsonschema checks each, and one that is cut off is a failure.

    pip download --no-deps --no-binary jsonschema jsonschema && tar xf jsonschema-*.tar.gz
    PYTHONPATH=src python benchmarks/json_schemas.py jsonschema-*/json/tests/draft2020-12

The suite is the JSON Schema Test Suite, which the source distribution of jsonschema brings. Its schemas that some
instance satisfies are asked for until `--schemas` of them were accepted; those that are refused are counted by reason.
"""

# ruff: noqa: T201 - it prints its findings
from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
from output_options import add_output_options

from tokenvm.bench.report import Grid, Report, finish, machine
from tokenvm.engine.sampling.grammar import refuse_bad_structure
from tokenvm.errors import RequestError
from tokenvm.llm import LLM
from tokenvm.schedule.sampling_params import SamplingParams


@dataclass
class Tally:
    """What became of the schemas."""

    valid: int = 0
    cut_off: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


def schemas_of(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield name and schema of all groups that have an instance found valid; no schema twice."""
    seen = set()
    for path in sorted(folder.rglob("*.json"), key=lambda path: (len(path.parts), path)):
        for group in json.loads(path.read_text(encoding="utf-8")):
            schema = group["schema"]
            text = json.dumps(schema, sort_keys=True)
            new = isinstance(schema, dict) and text not in seen
            if new and any(one["valid"] and checks(schema, one["data"]) for one in group["tests"]):
                seen.add(text)
                yield f"{path.stem}: {group['description']}", schema


def checks(schema: Any, data: Any) -> bool:
    """Whether jsonschema can say that an instance is valid: it knows no remote schemas and not every pattern."""
    try:
        return jsonschema.Draft202012Validator(schema).is_valid(data)
    except Exception:  # a schema may make it raise anything
        return False


def accepted(
    folder: Path, most: int, tokens: int, seed: int, tally: Tally
) -> list[tuple[str, Any, SamplingParams]]:
    """Return the first schemas that are followed, and how they are asked for; note why others are refused."""
    found: list[tuple[str, Any, SamplingParams]] = []
    for name, schema in schemas_of(folder):
        if len(found) == most:
            break
        try:
            params = SamplingParams(max_tokens=tokens, seed=seed, structured_outputs={"json": schema})
            refuse_bad_structure(params)
        except RequestError as error:
            tally.refused[str(error).partition("(")[2].partition(")")[0][:60]] += 1
        else:
            found.append((name, schema, params))
    return found


def judge(name: str, schema: Any, text: str, reason: str | None, tally: Tally) -> None:
    """Enter one answer."""
    if reason != "stop":
        tally.cut_off.append(f"{name}: {text[:80]!r}")
        return
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
        tally.valid += 1
    except (ValueError, jsonschema.ValidationError) as error:
        tally.invalid.append(f"{name}: {text[:80]!r}: {str(error).splitlines()[0]}")


def main() -> None:
    """Ask for all schemas and print what became of them; fail if an answer was cut off or invalid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=96, help="most tokens of an answer")
    parser.add_argument("--seed", type=int, default=0)
    add_output_options(parser, "json_schemas")
    options = parser.parse_args()
    tally = Tally()
    asked = accepted(options.suite, options.schemas, options.tokens, options.seed, tally)
    with LLM(options.model) as llm:
        talks = [f"Write JSON that this schema accepts: {json.dumps(schema)}" for _, schema, _ in asked]
        ids = [
            llm.get_tokenizer().apply_chat_template([{"role": "user", "content": talk[:2000]}])
            for talk in talks
        ]
        prompts = [{"prompt_token_ids": one} for one in ids]
        outputs = llm.generate(prompts, [params for _, _, params in asked])
    for (name, schema, _), output in zip(asked, outputs, strict=True):
        judge(name, schema, output.outputs[0].text, output.outputs[0].finish_reason, tally)
    report(tally, len(asked), options)
    sys.exit(1 if tally.cut_off or tally.invalid else 0)


def report(tally: Tally, asked: int, options: argparse.Namespace) -> None:
    """Print counts, and what went wrong."""
    for problem in [*tally.cut_off, *tally.invalid]:
        print(problem)
    rows = [
        ["followed", str(asked)],
        ["valid", str(tally.valid)],
        ["cut off", str(len(tally.cut_off))],
        ["invalid", str(len(tally.invalid))],
        ["refused by name", str(sum(tally.refused.values()))],
    ]
    figures = {
        "bench": "json_schemas",
        "model": options.model,
        "tokens": options.tokens,
        "followed": asked,
        "valid": tally.valid,
        "cut_off": tally.cut_off,
        "invalid": tally.invalid,
        "refused": dict(tally.refused),
        "machine": machine(),
    }
    why = ", ".join(f"{reason} ({count})" for reason, count in tally.refused.most_common(8))
    finish(
        Report("json_schemas", figures, [Grid(("schemas", "count"), rows)], [f"Refused: {why}."]),
        options.write,
        options.json,
    )


if __name__ == "__main__":
    main()
