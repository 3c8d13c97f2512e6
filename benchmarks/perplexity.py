"""How well the model predicts a text: the measure of what a lossy KV format costs.

    PYTHONPATH=src python benchmarks/perplexity.py TEXT --window 1024 --tokens 32768 --formats auto,int8,fp8

The text is cut into windows that do not overlap; in each, every token but the first is predicted from those before it.
Formats are run window by window in turn, and compared on the very same tokens. The smaller the better.
"""

# ruff: noqa: T201 - it prints its findings
from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from output_options import add_output_options

from tokenvm.bench.report import Grid, Report, finish, machine
from tokenvm.bench.subject import Paging, Subject, open_subject, turn
from tokenvm.config import MemoryConfig
from tokenvm.engine.engine import Engine
from tokenvm.models.fetch import resolve_model
from tokenvm.schedule.plan import Plan, Span
from tokenvm.tokenizer import Tokenizer
from tokenvm.vocab import SeqId

FIELD = "kv_cache_dtype"


def nll(engine: Engine, seq: int, ids: list[int], rows: int) -> list[float]:
    """Return the negative log-likelihood of ids[1:], each given all before it; `rows` tokens a pass."""
    kvcache, runner, found = engine.kvcache, engine.runner, []
    kvcache.create(SeqId(seq))
    for start in range(0, len(ids), rows):
        chunk = ids[start : start + rows]
        plan = Plan((Span(SeqId(seq), start, len(chunk), True),))
        with kvcache.stage(plan) as staged:
            logits = runner.run(plan, chunk, staged, every_row=True)
        kvcache.commit(SeqId(seq), len(chunk), ids)
        wanted = torch.tensor(ids[start + 1 : start + len(chunk) + 1])
        likely = torch.log_softmax(logits[: len(wanted)], dim=1)
        found += (-likely.gather(1, wanted[:, None])[:, 0]).tolist()
    kvcache.release(SeqId(seq))
    return found


def windows(ids: list[int], length: int) -> list[list[int]]:
    """Cut a text into whole windows that do not overlap."""
    return [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]


def subject_for(options: argparse.Namespace, kv: str) -> Subject:
    """Open the model with KV in a format; "auto" is that of the weights."""
    memory: dict[str, object] = {"block_tokens": options.block_tokens}
    if kv != "auto":
        memory[FIELD] = kv
    return open_subject(options.model, options.dtype, MemoryConfig.model_validate(memory), None)


def measure(options: argparse.Namespace, kv: str, texts: list[list[int]]) -> list[list[float]]:
    """Return the negative log-likelihood of every predicted token of each window, under one KV format."""
    subject = subject_for(options, kv)
    found: list[list[float]] = []
    with subject.engine(Paging(), options.window) as engine:
        for number, text in enumerate(texts):
            with turn(options.lock):
                found.append(nll(engine, number, text, options.rows))
            print(
                f"{kv}: window {number + 1} of {len(texts)}, perplexity {perplexity(found):.4f}", flush=True
            )
    return found


def perplexity(losses: list[list[float]]) -> float:
    """Return e to the mean loss of a token."""
    return math.exp(statistics.fmean(loss for window in losses for loss in window))


def change(losses: list[list[float]], exact: list[list[float]]) -> tuple[float, float]:
    """Return how much larger the perplexity is, relatively, and the standard error of that over paired windows."""
    pairs = zip(losses, exact, strict=True)
    changes = [statistics.fmean(a) - statistics.fmean(b) for a, b in pairs]
    error = statistics.stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else 0.0
    return perplexity(losses) / perplexity(exact) - 1, error


def report(
    options: argparse.Namespace, values: dict[str, list[list[float]]], texts: list[list[int]]
) -> Report:
    """Put perplexities and their change against the first format into a table."""
    first = next(iter(values.values()))
    rows: list[dict[str, Any]] = []
    for kv, losses in values.items():
        more, error = change(losses, first)
        rows.append({"kv": kv, "perplexity": perplexity(losses), "change": more, "change_error": error})
    figures = {
        "bench": "perplexity",
        "model": options.model,
        "text": options.text.name,
        "window_tokens": options.window,
        "tokens": sum(map(len, first)),
        "rows": rows,
        "machine": machine(),
    }
    cells = [
        [
            row["kv"],
            f"{row['perplexity']:.4f}",
            f"{100 * row['change']:+.3f} % ± {100 * row['change_error']:.3f}",
        ]
        for row in rows
    ]
    note = (
        f"{options.text.name}: {len(texts)} windows of {options.window} tokens, {figures['tokens']:,} predicted, "
        f"{options.dtype} weights. Change: against the first, with its standard error over windows."
    )
    return Report("perplexity", figures, [Grid(("KV format", "perplexity", "change"), cells)], [note])


def main() -> None:
    """Measure every format asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--formats", default="auto", help=f"KV formats ({FIELD}), comma separated")
    parser.add_argument("--block-tokens", default="auto")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens of the text that are read")
    parser.add_argument("--rows", type=int, default=256, help="tokens a pass")
    add_output_options(parser, "perplexity")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_folder(resolve_model(options.model))
    texts = windows(tokenizer.encode(options.text.read_text("utf-8"))[: options.tokens], options.window)
    if not texts:
        parser.error(f"{options.text} is shorter than a window: type --window 256, or name a longer text")
    values = {kv: measure(options, kv, texts) for kv in options.formats.split(",")}
    result = report(options, values, texts)
    finish(result, options.write, options.json)


if __name__ == "__main__":
    main()
