"""How to choose tokens: the fields of a request, and what may be given for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tokenvm.errors import RequestError
from tokenvm.schedule.structured_outputs import StructuredOutputsParams

MIN_TEMPERATURE: Final = 1e-6
"""Below it, logits divided by the temperature may overflow."""

MAX_TEMPERATURE: Final = 1e6
"""Above it, every token is as likely as any other anyway."""

MAX_N: Final = 1024
"""More completions of one prompt than this are a mistake."""

ALL: Final = -1
"""As `logprobs` or `prompt_logprobs`: of the whole vocabulary."""


def _is_whole(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return number and least <= value <= most


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _all(holds: Callable[[Any], bool], values: Any) -> bool:
    return isinstance(values, tuple | list) and all(map(holds, values))


def _is_tokens(values: Any) -> bool:
    return _all(lambda token: _is_whole(token, 0), values)


def _is_bias(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_whole(token, 0) and _is_number(bias, -100, 100) for token, bias in value.items()
    )


_SWITCH = ("True or False", lambda value: isinstance(value, bool))
_PENALTY = ("a number from -2 to 2", lambda value: _is_number(value, -2, 2))
_LOGPROBS = (
    "None, a whole number, 0 or more, or -1 for the whole vocabulary",
    lambda value: value is None or _is_whole(value, ALL),
)

RANGES: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "n": (f"a whole number from 1 to {MAX_N}", lambda value: _is_whole(value, 1, MAX_N)),
    "temperature": (
        f"0 for greedy, or a number from {MIN_TEMPERATURE} to {MAX_TEMPERATURE:.0f}",
        lambda value: (
            (value == 0 and _is_number(value)) or _is_number(value, MIN_TEMPERATURE, MAX_TEMPERATURE)
        ),
    ),
    "top_p": ("a number above 0 and at most 1", lambda value: _is_number(value) and 0 < value <= 1),
    "top_k": ("-1 or 0 for off, or a positive whole number", lambda value: _is_whole(value, -1)),
    "min_p": ("a number from 0 to 1", lambda value: _is_number(value, 0, 1)),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "repetition_penalty": (
        "a number from 0.01 to 100, 1 for off",
        lambda value: _is_number(value, 0.01, 100),
    ),
    "logit_bias": (
        "None or a dict from token ids to numbers from -100 to 100",
        lambda value: value is None or _is_bias(value),
    ),
    "stop": (
        "None, a non-empty text or a list of them",
        lambda value: value is None or _is_text(value) or _all(_is_text, value),
    ),
    "stop_token_ids": (
        "None or a list of token ids",
        lambda value: value is None or _all(lambda token: _is_whole(token, 0), value),
    ),
    "ignore_eos": _SWITCH,
    "min_tokens": ("a whole number, 0 or more", lambda value: _is_whole(value, 0)),
    "max_tokens": (
        "a whole number, 1 or more, or None for as many as the model allows",
        lambda value: value is None or _is_whole(value, 1),
    ),
    "seed": ("a whole number or None", lambda value: value is None or _is_whole(value)),
    "logprobs": _LOGPROBS,
    "prompt_logprobs": _LOGPROBS,
    "structured_outputs": (
        "None, StructuredOutputsParams(...) or a dict of its fields",
        lambda value: value is None or isinstance(value, StructuredOutputsParams | Mapping),
    ),
    "allowed_token_ids": (
        "None or a non-empty list of token ids",
        lambda value: value is None or (_is_tokens(value) and len(value) > 0),
    ),
    "bad_words": (
        "None or a list of non-empty texts",
        lambda value: value is None or _all(_is_text, value),
    ),
    "bad_words_token_ids": (
        "None or a list of non-empty lists of token ids",
        lambda value: value is None or _all(lambda word: _is_tokens(word) and len(word) > 0, value),
    ),
    "skip_special_tokens": _SWITCH,
    "include_stop_str_in_output": _SWITCH,
}
"""Field → what may be given, in words and as a test."""


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens; names, defaults and meanings are those of vLLM.

    n completions are drawn from random streams of their own. temperature 0 is greedy. Logits are changed in this order:
    logit_bias, repetition_penalty (tokens of prompt and completion), frequency_penalty and presence_penalty (of the
    completion); then what cannot come is forbidden: all but `allowed_token_ids` or what `structured_outputs` leaves,
    what would complete one of bad_words, and end tokens and stop_token_ids until min_tokens are there (stop strings do
    not count); then temperature, min_p, top_k, top_p. `bad_words_token_ids` are bad words as tokens: LLM makes them of
    `bad_words`. top_k 0 or -1, top_p 1.0 and min_p 0.0 cut nothing. max_tokens None is as many as the model allows.
    `logprobs` and `prompt_logprobs` ask for that many of the best tokens beside the one that stands there, under the
    model's own distribution: before everything above. A seed makes a request repeatable, alone and in any batch.

    Raises RequestError for a value out of range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    stop: str | tuple[str, ...] | list[str] | None = None
    stop_token_ids: tuple[int, ...] | list[int] | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None
    allowed_token_ids: tuple[int, ...] | list[int] | None = None
    bad_words: tuple[str, ...] | list[str] | None = None
    bad_words_token_ids: tuple[tuple[int, ...], ...] | list[list[int]] | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        for name, (allowed, holds) in RANGES.items():
            value = getattr(self, name)
            if not holds(value):
                raise RequestError(f"SamplingParams.{name}={value!r} is not possible: give {allowed}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"SamplingParams.min_tokens={self.min_tokens} is not possible: give at most max_tokens, "
                f"{self.max_tokens}, or raise that"
            )
        if self.structured_outputs is not None:
            object.__setattr__(
                self, "structured_outputs", StructuredOutputsParams.of(self.structured_outputs)
            )
            self._refuse_beside_structure()

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, empty for none."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def structure(self) -> StructuredOutputsParams | None:
        """What the answer must look like, if that is asked for."""
        wanted = self.structured_outputs
        return None if wanted is None else StructuredOutputsParams.of(wanted)

    def most_tokens(self, room: int) -> int:
        """Return how many tokens may be produced where the model has room for `room`."""
        return room if self.max_tokens is None else min(self.max_tokens, room)

    def refuse_unknown(self, vocab_size: int) -> None:
        """Raise RequestError for tokens that a model of `vocab_size` tokens does not have."""
        named = {
            "logit_bias": self.logit_bias or (),
            "allowed_token_ids": self.allowed_token_ids or (),
            "bad_words_token_ids": [token for word in self.bad_words_token_ids or () for token in word],
        }
        for name, tokens in named.items():
            for token in tokens:
                if token >= vocab_size:
                    raise RequestError(
                        f"SamplingParams.{name} names token {token}, which is not in the vocabulary: ids are whole "
                        f"numbers from 0 to {vocab_size - 1}"
                    )

    def _refuse_beside_structure(self) -> None:
        for name in ("ignore_eos", "allowed_token_ids"):
            if getattr(self, name):
                raise RequestError(
                    f"SamplingParams has structured_outputs and {name}, which contradict each other: leave one out"
                )
