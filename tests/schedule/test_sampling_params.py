"""Every sampling parameter out of range, or not served yet, is refused by name with what to do."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from tokenvm.errors import RequestError
from tokenvm.schedule.sampling_params import NEUTRAL, RANGES, SamplingParams

REFUSED: dict[str, list[Any]] = {
    "n": [2, 0, "1"],
    "min_p": [0.1],
    "presence_penalty": [0.5],
    "frequency_penalty": [-0.5],
    "repetition_penalty": [1.1],
    "logit_bias": [{5: 1.0}],
    "min_tokens": [1],
    "prompt_logprobs": [0],
    "temperature": [-0.1, 1e-9, math.nan, math.inf, "hot", None, True],
    "top_p": [0, -1, 1.0001, math.nan, "all", None, True],
    "top_k": [-2, 1.5, "5", None, True],
    "stop": ["", ["a", ""], [3], 5, {"a": 1}, b"x", ["a", None]],
    "stop_token_ids": [5, [-1], [1.0], ["a"], "12", [True], {1: 2}],
    "ignore_eos": [1, "yes", None],
    "max_tokens": [0, -1, 1.0, None, True],
    "seed": [1.0, "1", True],
    "logprobs": [-1, 1.0, True],
    "skip_special_tokens": [0, "no", None],
}
ACCEPTED: dict[str, list[Any]] = {
    "temperature": [0, 0.0, 1e-6, 0.7, 100],
    "top_p": [1, 1.0, 0.01],
    "top_k": [-1, 0, 1, 10**9],
    "stop": [None, "x", ["x", "\n\n"], ("x",), []],
    "stop_token_ids": [None, [], [0, 2], (7,)],
    "ignore_eos": [True, False],
    "max_tokens": [1, 10**9],
    "seed": [None, 0, -1, 2**80],
    "logprobs": [None, 0, 20],
    "skip_special_tokens": [True, False],
}


def cases(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in table.items() for value in values]


@pytest.mark.parametrize(("name", "value"), cases(REFUSED))
def test_what_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"SamplingParams.{name}")
    assert "leave it at" in message if name in NEUTRAL else ": give " in message


@pytest.mark.parametrize(("name", "value"), cases(ACCEPTED))
def test_what_is_accepted(name: str, value: Any) -> None:
    assert getattr(SamplingParams(**{name: value}), name) == value


def test_every_field_is_either_ranged_or_not_served() -> None:
    names = {field.name for field in fields(SamplingParams)}
    assert names == set(RANGES) | set(NEUTRAL) == set(REFUSED)
    assert not set(RANGES) & set(NEUTRAL)
    assert set(RANGES) == set(ACCEPTED)


def test_the_defaults_are_neutral() -> None:
    params = SamplingParams()
    assert {name: getattr(params, name) for name in NEUTRAL} == dict(NEUTRAL)


@pytest.mark.parametrize(
    ("stop", "strings"), [(None, ()), ("ab", ("ab",)), (["a", "b"], ("a", "b")), ((), ())]
)
def test_stop_strings_are_a_tuple(stop: Any, strings: tuple[str, ...]) -> None:
    assert SamplingParams(stop=stop).stop_strings == strings
