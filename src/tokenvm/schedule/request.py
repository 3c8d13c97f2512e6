"""What a user asked for, and the sequence that is made of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tokenvm.errors import RequestError
from tokenvm.vocab import SeqId

NEUTRAL = MappingProxyType(
    {
        "n": 1,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": None,
        "min_tokens": 0,
        "prompt_logprobs": None,
    }
)
"""Fields that are part of the interface but not served yet, with the only value that is accepted."""


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens; the names and defaults are those of vLLM.

    temperature 0 is greedy. top_k 0 or -1 and top_p 1.0 cut nothing. `logprobs` asks for that many of the best tokens
    beside the chosen one. A seed makes a request repeatable, alone and in any batch.

    Raises RequestError for a value out of range, and for a field that is not served yet.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    stop: str | tuple[str, ...] | list[str] | None = None
    stop_token_ids: tuple[int, ...] | list[int] | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int = 16
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name, value in NEUTRAL.items():
            if getattr(self, name) != value:
                raise RequestError(f"SamplingParams.{name} is not served yet: leave it at {value!r}")
        _require(
            _is_number(self.temperature) and self.temperature >= 0,
            "temperature",
            self.temperature,
            "0 or more",
        )
        _require(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(
            _is_whole(self.top_k) and self.top_k >= -1,
            "top_k",
            self.top_k,
            "-1 or 0 for off, or a positive whole number",
        )
        _require(
            _is_whole(self.max_tokens) and self.max_tokens >= 1, "max_tokens", self.max_tokens, "1 or more"
        )
        _require(self.seed is None or _is_whole(self.seed), "seed", self.seed, "a whole number or None")
        counted = self.logprobs is None or (_is_whole(self.logprobs) and self.logprobs >= 0)
        _require(counted, "logprobs", self.logprobs, "None, 0 or more")
        _require(
            all(isinstance(text, str) and text for text in self.stop_strings),
            "stop",
            self.stop,
            "non-empty texts",
        )
        _require(
            all(map(_is_whole, self.stop_token_ids or ())), "stop_token_ids", self.stop_token_ids, "token ids"
        )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, empty for none."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    arrival_s: float = 0.0


class Status(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True)
class Sequence:
    """One stream of tokens. Invariant: computed <= len(tokens); the KV of `computed` tokens is committed."""

    seq: SeqId
    request: Request
    max_new_tokens: int
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    status: Status = Status.WAITING

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_token_ids)

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def new_tokens(self) -> int:
        """How many tokens have been produced."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def pending(self) -> int:
        """How many known tokens still lack their KV; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether all but the last produced token have their KV. The last prompt token alone is still prefill."""
        return self.pending == 1 and self.new_tokens > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, name: str, value: Any, allowed: str) -> None:
    if not holds:
        raise RequestError(f"SamplingParams.{name}={value!r} is not possible: give {allowed}")
