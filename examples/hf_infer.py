#!/usr/bin/env python3
"""Generate with a Transformers model whose KV is paged: python examples/hf_infer.py --model FOLDER --prompt "..."."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

import torch

from tokenvm import MemoryConfig, TokenVMError, disable_paging
from tokenvm.bridges.paged_model import PagedModel


def main() -> int:
    """Parse the command line, generate, say what moved."""
    asked = arguments()
    memory = MemoryConfig(block_tokens=asked.block_tokens)
    try:
        paged = PagedModel.from_pretrained(
            asked.model, memory, dtype="auto", token=asked.hf_token or os.environ.get("HF_TOKEN")
        )
    except TokenVMError as error:
        print(error, file=sys.stderr)
        return 1
    ids = prompt_ids(paged, asked.prompt, asked.context_length)
    options = {"max_length": max(asked.max_length, ids.shape[1] + 1), **sampling(asked)}
    if asked.no_tokenvm or asked.benchmark:
        disable_paging(paged.model)
        report("without TokenVM", paged, ids, options)
    if not asked.no_tokenvm:
        with PagedModel(paged.model, paged.tokenizer, memory) as again:
            report("with TokenVM", again, ids, options)
            stats = again.stats()
            print(
                f"path {stats['path']}, moved {stats['moved_bytes']}, streamed pages {stats['streamed_pages']}"
            )
    return 0


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--prompt", default="The history of virtual memory begins with")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of prompt and answer")
    parser.add_argument("--context-length", type=int, default=0, help="repeat the prompt to so many tokens")
    parser.add_argument("--block-tokens", type=int, default=128)
    parser.add_argument("--no-tokenvm", action="store_true", help="the model as it is")
    parser.add_argument("--benchmark", action="store_true", help="without and with TokenVM, in turn")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--hf-token", default="", help="for gated models; else HF_TOKEN")
    return parser.parse_args()


def prompt_ids(paged: PagedModel, prompt: str, context_length: int) -> torch.Tensor:
    """Return the prompt as ids [1, T]; without a tokenizer its bytes are the ids."""
    vocabulary = paged.model.config.get_text_config().vocab_size
    if paged.tokenizer is None:
        ids = torch.tensor([[byte % vocabulary for byte in prompt.encode()]])
    else:
        ids = paged.tokenizer(prompt, return_tensors="pt").input_ids
    if context_length > ids.shape[1]:
        ids = ids.repeat(1, -(-context_length // ids.shape[1]))[:, :context_length]
    return ids


def sampling(asked: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `generate`."""
    if asked.temperature <= 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": asked.temperature, "top_p": asked.top_p}


def report(name: str, paged: PagedModel, ids: torch.Tensor, options: dict[str, Any]) -> None:
    """Generate once and print the answer with its speed."""
    torch.manual_seed(0)
    began_s = time.perf_counter()
    sequences = paged.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    seconds = time.perf_counter() - began_s
    new = sequences[0, ids.shape[1] :]
    text = new.tolist() if paged.tokenizer is None else paged.tokenizer.decode(new, skip_special_tokens=True)
    print(f"{name}: {len(new)} tokens, {len(new) / seconds:.1f} tokens/s")
    print(text)


if __name__ == "__main__":
    raise SystemExit(main())
