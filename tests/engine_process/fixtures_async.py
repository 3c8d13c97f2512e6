"""Prompts, what they are answered with, and an event loop that outlives a test."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tokenvm import AsyncLLM, MemoryConfig, RequestOutput, SamplingParams

MEMORY = MemoryConfig(block_tokens=16, kv_limit="1MB", host_memory="1MB", nvme_limit="32MB")
ARGUMENTS = {"memory": MEMORY, "max_num_seqs": 8, "max_tokens_per_forward": 64, "threads": 1}
BOUND_S = 60.0
"""Nothing here takes so long, unless it hangs."""


Run = Callable[[Awaitable[Any]], Any]


@contextmanager
def loop() -> Iterator[Run]:
    """Lend what runs a coroutine to its end, within a bound, in one event loop."""

    async def bounded(work: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(work, BOUND_S)

    with asyncio.Runner() as runner:
        yield lambda work: runner.run(bounded(work))


def prompt(tokens: int, seed: int = 0) -> dict[str, Any]:
    ids = np.random.default_rng([seed, tokens]).integers(3, 250, tokens).tolist()
    return {"prompt_token_ids": ids}


def greedy(max_tokens: int = 12, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **more)


async def last(
    llm: AsyncLLM, prompt: Any, params: SamplingParams | None = None, **more: Any
) -> RequestOutput:
    """The last of what a request yields."""
    outputs = [output async for output in llm.generate(prompt, params, **more)]
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    return outputs[-1]


def said(output: RequestOutput) -> tuple[Any, ...]:
    """All of an output but its id and its times."""
    (one,) = output.outputs
    return output.prompt_token_ids, one.token_ids, one.text, one.logprobs, one.finish_reason, one.stop_reason
