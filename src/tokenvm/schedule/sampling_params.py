"""How to choose tokens: the fields of a request, and what may be given for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from tokenvm.errors import RequestError

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

MIN_TEMPERATURE: Final = 1e-6
"""Below it, logits divided by the temperature may overflow."""


def _is_whole(value: Any, least: float = -math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _all(holds: Callable[[Any], bool], values: Any) -> bool:
    return isinstance(values, tuple | list) and all(map(holds, values))


RANGES: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "temperature": (
        f"0 for greedy, or a number from {MIN_TEMPERATURE} on",
        lambda value: _is_number(value) and (value == 0 or value >= MIN_TEMPERATURE),
    ),
    "top_p": ("a number above 0 and at most 1", lambda value: _is_number(value) and 0 < value <= 1),
    "top_k": ("-1 or 0 for off, or a positive whole number", lambda value: _is_whole(value, -1)),
    "stop": (
        "None, a non-empty text or a list of them",
        lambda value: value is None or _is_text(value) or _all(_is_text, value),
    ),
    "stop_token_ids": (
        "None or a list of token ids",
        lambda value: value is None or _all(lambda token: _is_whole(token, 0), value),
    ),
    "ignore_eos": ("True or False", lambda value: isinstance(value, bool)),
    "max_tokens": ("a whole number, 1 or more", lambda value: _is_whole(value, 1)),
    "seed": ("a whole number or None", lambda value: value is None or _is_whole(value)),
    "logprobs": ("None or a whole number, 0 or more", lambda value: value is None or _is_whole(value, 0)),
    "skip_special_tokens": ("True or False", lambda value: isinstance(value, bool)),
}
"""Field → what may be given, in words and as a test."""


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
        for name, (allowed, holds) in RANGES.items():
            value = getattr(self, name)
            if not holds(value):
                raise RequestError(f"SamplingParams.{name}={value!r} is not possible: give {allowed}")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, empty for none."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
