"""How many tokens an answer took, as OpenAI tells it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tokenvm.outputs import RequestOutput


@dataclass(slots=True)
class Usage:
    """Tokens of one answer. A prompt counts once, however many completions it has."""

    prompt_tokens: dict[int, int] = field(default_factory=dict)
    cached_tokens: int = 0
    produced_tokens: int = 0

    @classmethod
    def of(cls, outputs: Iterable[RequestOutput]) -> Usage:
        """Count whole outputs."""
        usage = cls()
        for index, output in enumerate(outputs):
            usage.add(index, output)
        return usage

    def add(self, index: int, output: RequestOutput) -> None:
        """Count what is new for the `index`-th prompt."""
        self.prompt_tokens[index] = len(output.prompt_token_ids)
        self.produced_tokens += sum(len(one.token_ids) for one in output.outputs)
        if output.metrics is not None:
            self.cached_tokens += output.metrics.cached_tokens

    def as_dict(self) -> dict[str, Any]:
        """Return OpenAI's usage object."""
        prompt = sum(self.prompt_tokens.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.produced_tokens,
            "total_tokens": prompt + self.produced_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
