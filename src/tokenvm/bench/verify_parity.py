"""Does float32 generation say what Transformers says: greedy tokens and logits, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from tokenvm.bridges.reference import Reference
from tokenvm.llm import LLM
from tokenvm.schedule.plan import Plan
from tokenvm.schedule.sampling_params import SamplingParams

TOLERANCE: Final = 1e-3
"""The largest difference of a logit, and the distance of two best logits below which either token is right."""


@dataclass(frozen=True, slots=True)
class Parity:
    """One prompt compared over `steps` tokens. `excused`: it ended early, at a tie within the tolerance.

    `problem` says what was wrong, empty if nothing was.
    """

    prompt_tokens: int
    steps: int
    max_difference: float
    excused: bool = False
    problem: str = ""


def compare_prompts(
    llm: LLM, reference: Reference, prompts: Sequence[Sequence[int]], tokens: int
) -> Iterator[Parity]:
    """Let both continue each prompt by `tokens` greedy tokens; yield one comparison each."""
    for prompt in prompts:
        produced, logits = _generate(llm, prompt, tokens)
        yield compare(reference, prompt, produced, logits)


def compare(
    reference: Reference, prompt: Sequence[int], tokens: Sequence[int], logits: Sequence[torch.Tensor]
) -> Parity:
    """Compare tokens and the fp32 logits [vocab_size] that each was chosen by with the reference's own."""
    largest = 0.0
    expected = reference.begin(prompt)
    for step, (token, ours) in enumerate(zip(tokens, logits, strict=True), start=1):
        difference = float((ours - expected).abs().max())
        largest = max(largest, difference)
        if not difference <= TOLERANCE:
            return Parity(
                len(prompt), step, largest, problem=f"token {step}: a logit differs by {difference:.2g}"
            )
        best = int(expected.argmax())
        if token != best:
            excused = float(expected[best] - expected[token]) <= TOLERANCE
            problem = "" if excused else f"token {step} is {token}, Transformers says {best}"
            return Parity(len(prompt), step, largest, excused, problem)
        if step < len(tokens):
            expected = reference.feed(token)
    reference.end()
    return Parity(len(prompt), len(tokens), largest)


def _generate(llm: LLM, prompt: Sequence[int], tokens: int) -> tuple[list[int], list[torch.Tensor]]:
    """Continue a prompt greedily; return the tokens and the logits behind each."""
    rows: dict[int, torch.Tensor] = {}

    def tap(plan: Plan, logits: torch.Tensor) -> None:
        ends = [span.end for span in plan.spans if span.samples]
        rows.update(zip(ends, logits.clone(), strict=True))  # a step that is repeated replaces its rows

    llm.engine.runner.tap = tap
    try:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        (output,) = llm.generate([{"prompt_token_ids": list(prompt)}], params, use_tqdm=False)
    finally:
        llm.engine.runner.tap = None
    return output.outputs[0].token_ids, [rows[end] for end in sorted(rows)]
