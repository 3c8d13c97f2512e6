"""What it costs to borrow: one model natively and as Transformers' modules, in the same engine, step by step.

    PYTHONPATH=src python benchmarks/borrowed.py --rounds 3

Both ways attend the same pages with the same kernels; only what lies between two attentions differs. Greedy tokens are
counted where they agree: the modules round elsewhere.
"""

# ruff: noqa: T201 - it prints its findings
from __future__ import annotations

import argparse
import json
import statistics
import time
from importlib import resources

from tokenvm.borrowed.load import borrow_model
from tokenvm.config import MemoryConfig
from tokenvm.llm import LLM, make_settings
from tokenvm.models.fetch import resolve_model
from tokenvm.models.weights.pack import load_model
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.tokenizer import Tokenizer


def run(llm: LLM, ids: list[int], tokens: int) -> tuple[float, float, list[int]]:
    """Return the seconds of the prompt and of each later token, and the tokens."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    begun_s = time.perf_counter()
    (out,) = llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
    whole_s = time.perf_counter() - begun_s
    ttft_s = out.metrics.ttft_s
    return ttft_s, (whole_s - ttft_s) / (tokens - 1), list(out.outputs[0].token_ids)


def main() -> None:
    """Measure in turn and print medians, one JSON line last."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = resolve_model(options.model)
    settings = make_settings(MemoryConfig(), max_num_seqs=1, enable_prefix_caching=False)
    tokenizer = Tokenizer.from_folder(folder)
    models = {"native": load_model(folder), "borrowed": borrow_model(folder, "auto", "asked for")}
    text = resources.files("tokenvm").joinpath("texts/constitution.txt").read_text("utf-8")
    ids = tokenizer.encode(text)[: options.context]
    figures: dict[str, list[tuple[float, float, list[int]]]] = {name: [] for name in models}
    for _ in range(options.rounds):
        for name, model in models.items():
            with LLM.from_loaded(model, tokenizer, settings) as llm:
                figures[name].append(run(llm, ids, options.tokens))
    found = {
        name: {
            "prompt_ms": 1000 * statistics.median(prompt_s for prompt_s, _, _ in rounds),
            "token_ms": 1000 * statistics.median(token_s for _, token_s, _ in rounds),
        }
        for name, rounds in figures.items()
    }
    pairs = zip(figures["native"][0][2], figures["borrowed"][0][2], strict=True)
    agreeing = sum(one == other for one, other in pairs)
    for name, row in found.items():
        print(f"{name:10} prompt {row['prompt_ms']:8.1f} ms   token {row['token_ms']:7.2f} ms")
    print(f"{agreeing} of {options.tokens} greedy tokens agree")
    print(json.dumps({**found, "agreeing": agreeing, "context": options.context, "tokens": options.tokens}))


if __name__ == "__main__":
    main()
