"""Every sampling parameter out of range is refused by name with what to do."""

from __future__ import annotations

import math
from dataclasses import fields
from types import MappingProxyType
from typing import Any

import pytest

from tokenvm.errors import RequestError
from tokenvm.schedule.sampling_params import MAX_N, RANGES, SamplingParams
from tokenvm.schedule.structured_outputs import StructuredOutputsParams

REFUSED: dict[str, list[Any]] = {
    "n": [0, -1, MAX_N + 1, 1.0, "1", None, True],
    "min_p": [-0.1, 1.1, math.nan, "0", None],
    "presence_penalty": [2.1, -2.1, math.nan, "0", None, True],
    "frequency_penalty": [2.1, -2.1, math.inf, None],
    "repetition_penalty": [0, -1, 0.009, 101, math.inf, math.nan, None],
    "logit_bias": [
        {5: 101},
        {5: -101},
        {5: math.nan},
        {5: "1"},
        {-1: 1},
        {"5": 1},
        {1.0: 1},
        [5],
        "5",
        {True: 1},
    ],
    "min_tokens": [-1, 1.0, None, True],
    "prompt_logprobs": [-2, 1.0, "1", True],
    "include_stop_str_in_output": [0, "yes", None],
    "temperature": [-0.1, 1e-9, 1.1e6, math.nan, math.inf, "hot", None, True],
    "top_p": [0, -1, 1.0001, math.nan, "all", None, True],
    "top_k": [-2, 1.5, "5", None, True],
    "stop": ["", ["a", ""], [3], 5, {"a": 1}, b"x", ["a", None]],
    "stop_token_ids": [5, [-1], [1.0], ["a"], "12", [True], {1: 2}],
    "ignore_eos": [1, "yes", None],
    "max_tokens": [0, -1, 1.0, True],
    "seed": [1.0, "1", True],
    "logprobs": [-2, 1.0, True],
    "structured_outputs": ["json", 5, {}, {"regex": ""}, {"json": "{"}, {"choice": "ab"}],
    "allowed_token_ids": [[], [-1], [1.0], 5, "5"],
    "bad_words": ["word", [""], [5], 5],
    "bad_words_token_ids": [[1], [[]], [[-1]], 5],
    "skip_special_tokens": [0, "no", None],
}
ACCEPTED: dict[str, list[Any]] = {
    "n": [1, 2, MAX_N],
    "min_p": [0, 0.0, 0.1, 1],
    "presence_penalty": [0, -2, 2, 0.5],
    "frequency_penalty": [0, -2, 2, 0.5],
    "repetition_penalty": [1, 0.01, 1.1, 100],
    "logit_bias": [None, {}, {5: 1.0, 0: -100}, MappingProxyType({1: 100})],
    "min_tokens": [0, 16],
    "prompt_logprobs": [None, -1, 0, 20],
    "include_stop_str_in_output": [True, False],
    "temperature": [0, 0.0, 1e-6, 0.7, 100, 1e6],
    "top_p": [1, 1.0, 0.01],
    "top_k": [-1, 0, 1, 10**9],
    "stop": [None, "x", ["x", "\n\n"], ("x",), []],
    "stop_token_ids": [None, [], [0, 2], (7,)],
    "ignore_eos": [True, False],
    "max_tokens": [None, 1, 10**9],
    "seed": [None, 0, -1, 2**80],
    "logprobs": [None, -1, 0, 20],
    "structured_outputs": [None, StructuredOutputsParams(regex="a+")],
    "allowed_token_ids": [None, [0], (4, 5)],
    "bad_words": [None, [], ["a", "b c"]],
    "bad_words_token_ids": [None, [], [[0], [1, 2]], ((1,),)],
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
    assert ": give " in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "value"), cases(ACCEPTED))
def test_what_is_accepted(name: str, value: Any) -> None:
    assert getattr(SamplingParams(**{name: value}), name) == value


def test_every_field_has_a_range_and_a_case() -> None:
    names = {field.name for field in fields(SamplingParams)}
    assert names == set(RANGES) == set(REFUSED) == set(ACCEPTED)


def test_the_defaults_are_in_range() -> None:
    params = SamplingParams()
    assert [name for name, (_, holds) in RANGES.items() if not holds(getattr(params, name))] == []


def test_no_more_tokens_may_be_demanded_than_allowed() -> None:
    with pytest.raises(RequestError, match="min_tokens=9 is not possible: give at most max_tokens, 8"):
        SamplingParams(min_tokens=9, max_tokens=8)
    assert SamplingParams(min_tokens=9, max_tokens=None).min_tokens == 9


@pytest.mark.parametrize(("max_tokens", "room", "most"), [(5, 9, 5), (9, 5, 5), (None, 7, 7)])
def test_no_more_tokens_come_than_there_is_room_for(max_tokens: int | None, room: int, most: int) -> None:
    assert SamplingParams(max_tokens=max_tokens).most_tokens(room) == most


def test_a_bias_for_a_token_that_does_not_exist() -> None:
    params = SamplingParams(logit_bias={4: 1.0, 97: 1.0})
    params.refuse_unknown(98)
    with pytest.raises(RequestError, match=r"logit_bias names token 97.*0 to 96"):
        params.refuse_unknown(97)


@pytest.mark.parametrize(
    ("stop", "strings"), [(None, ()), ("ab", ("ab",)), (["a", "b"], ("a", "b")), ((), ())]
)
def test_stop_strings_are_a_tuple(stop: Any, strings: tuple[str, ...]) -> None:
    assert SamplingParams(stop=stop).stop_strings == strings
