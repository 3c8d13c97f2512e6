#!/usr/bin/env python3
"""SmolLM2 through `generate` of Transformers, patched and unpatched, beside the native engine: seconds a token.

All three decode the same tokens after the same prompt, in turn in one run; patched and native have a tenth of the KV
on the device. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tokenvm import LLM, MemoryConfig, SamplingParams, enable_paging
from tokenvm.models.fetch import resolve_model


class Stopwatch:
    """Takes the time of every token that `generate` streams."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Hear of a token, or of the prompt."""
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        """Hear that it was the last."""

    @property
    def token_s(self) -> float:
        """The median time from one token to the next."""
        steps = zip(self.times_s[1:], self.times_s[2:], strict=False)
        return statistics.median(after - before for before, after in steps)


def main() -> None:
    """Measure, print a card, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, default=8000)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.1, help="of the KV that may be on the device")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    asked = parser.parse_args()
    folder = resolve_model("smollm2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=asked.dtype).eval()
    prompt = torch.randint(100, 40_000, (1, asked.context), generator=torch.Generator().manual_seed(0))
    spec = model.config
    head_dim = spec.hidden_size // spec.num_attention_heads
    token_bytes = 2 * model.dtype.itemsize * spec.num_hidden_layers * spec.num_key_value_heads * head_dim
    limit = int(asked.share * (asked.context + asked.tokens) * token_bytes)
    memory = MemoryConfig(kv_limit=limit, nvme_limit="2GB", block_tokens=128)
    found: dict[str, Any] = {"context": asked.context, "tokens": asked.tokens, "kv_limit_bytes": limit}
    found["unpatched_token_s"], plain = through_generate(model, prompt, asked.tokens)
    enable_paging(model, memory)
    found["patched_token_s"], paged = through_generate(model, prompt, asked.tokens)
    stats = model.tokenvm.stats()
    assert stats["streamed_pages"], "nothing was paged: give a smaller --share"
    found |= {"same_tokens": plain == paged, "path": stats["path"], "streamed_pages": stats["streamed_pages"]}
    found["native_token_s"] = natively(memory, prompt[0].tolist(), asked)
    for name in ("unpatched", "patched", "native"):
        sys.stdout.write(f"{name:10} {found[f'{name}_token_s'] * 1000:7.1f} ms a token\n")
    sys.stdout.write(f"same tokens: {found['same_tokens']}, {found['streamed_pages']} pages streamed\n")
    sys.stdout.write(json.dumps(found) + "\n")


def through_generate(model: Any, prompt: torch.Tensor, tokens: int) -> tuple[float, list[int]]:
    """Return the median seconds of a decode step, and the new tokens."""
    watch = Stopwatch()
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "streamer": watch}
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return watch.token_s, out[0, prompt.shape[1] :].tolist()


def natively(memory: MemoryConfig, prompt: list[int], asked: argparse.Namespace) -> float:
    """Return the median seconds of a decode step of `LLM`."""
    times_s = []
    with LLM("smollm2", memory=memory, dtype=asked.dtype) as llm:
        params = SamplingParams(temperature=0, max_tokens=asked.tokens, ignore_eos=True)
        for _ in llm.stream({"prompt_token_ids": prompt}, params):
            times_s.append(time.perf_counter())
    return statistics.median(after - before for before, after in itertools.pairwise(times_s))


if __name__ == "__main__":
    main()
