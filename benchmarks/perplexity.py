"""Perplexity of a text under each KV format: what a lossy format costs in quality.

python benchmarks/perplexity.py TEXT [--model smollm2] [--tokens 32768] [--window 1024] [--block-tokens auto]

Every window is read from an empty context; each token but its first is predicted from those before it in the window.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch

from tokenvm.config import MemoryConfig
from tokenvm.engine.engine import Engine
from tokenvm.engine.launch import Settings, build_engine
from tokenvm.models.fetch import resolve_model
from tokenvm.models.weights.pack import LoadedModel, load_model
from tokenvm.schedule.plan import Plan, Span
from tokenvm.tokenizer import Tokenizer
from tokenvm.vocab import SeqId

CHUNK_TOKENS = 256
FORMATS = ("auto", "int8", "fp8")


def window_loss(engine: Engine, seq: SeqId, ids: list[int]) -> list[float]:
    """Natural-log loss of each token of a window but its first."""
    losses: list[float] = []
    kv = engine.kvcache
    kv.create(seq)
    for start in range(0, len(ids), CHUNK_TOKENS):
        chunk = ids[start : start + CHUNK_TOKENS]
        plan = Plan((Span(seq, start, len(chunk), samples=False),))
        with kv.stage(plan) as staged:
            logits = engine.runner.run(plan, chunk, staged, every_row=True)
        kv.commit(seq, len(chunk), ids)
        targets = torch.tensor(ids[start + 1 : start + 1 + len(chunk)])
        losses += torch.nn.functional.cross_entropy(
            logits[: len(targets)], targets, reduction="none"
        ).tolist()
    kv.release(seq)
    return losses


def measure(model: LoadedModel, ids: list[int], window: int, kv_cache_dtype: str, block_tokens: str) -> dict:
    """Perplexity, and the standard error of its logarithm over windows."""
    memory = MemoryConfig(
        kv_cache_dtype=kv_cache_dtype,
        nvme_limit=0,
        block_tokens=int(block_tokens) if block_tokens != "auto" else "auto",
    )
    settings = Settings(
        memory, Path("/tmp"), max_model_len=window, max_num_seqs=1, max_tokens_per_forward=CHUNK_TOKENS
    )
    engine = build_engine(model, settings)
    began_s = time.monotonic()
    try:
        windows = [
            window_loss(engine, SeqId(at), ids[at : at + window])
            for at in range(0, len(ids) - window + 1, window)
        ]
    finally:
        engine.close()
    losses = [loss for one in windows for loss in one]
    return {
        "kv_cache_dtype": kv_cache_dtype,
        "perplexity": math.exp(sum(losses) / len(losses)),
        "window_losses": [sum(one) / len(one) for one in windows],
        "tokens": len(losses),
        "page_bytes": engine.kvcache.vm.layout.page_bytes,
        "block_tokens": engine.kvcache.block_tokens,
        "seconds": time.monotonic() - began_s,
    }


def compare(row: dict, exact: dict) -> dict:
    """The change against the exact format, with its standard error over paired windows; both relative."""
    pairs = zip(row.pop("window_losses"), exact["window_losses"], strict=True)
    changes = torch.tensor([a - b for a, b in pairs])
    error = float(changes.std() / math.sqrt(len(changes))) if len(changes) > 1 else 0.0
    return row | {"change": row["perplexity"] / exact["perplexity"] - 1, "change_error": error}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--block-tokens", default="auto")
    parser.add_argument("--formats", default=",".join(FORMATS))
    given = parser.parse_args()
    folder = resolve_model(given.model)
    model, tokenizer = load_model(folder), Tokenizer.from_folder(folder)
    ids = tokenizer.encode(given.text.read_text(encoding="utf-8"))[: given.tokens]
    rows = [measure(model, ids, given.window, name, given.block_tokens) for name in given.formats.split(",")]
    exact = dict(rows[0])
    rows = [compare(row, exact) for row in rows]
    for row in rows:
        sys.stdout.write(
            f"{row['kv_cache_dtype']:5} perplexity {row['perplexity']:8.4f} "
            f"({100 * row['change']:+.3f} % ± {100 * row['change_error']:.3f}), {row['tokens']} tokens, "
            f"pages of {row['block_tokens']} tokens, {row['page_bytes']} bytes, {row['seconds']:.0f} s\n"
        )
    sys.stdout.write(json.dumps({"bench": "perplexity", "window": given.window, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
