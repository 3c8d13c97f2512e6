"""What may be asked of an answer's shape, and what is refused by name."""

from typing import Any

import pytest

from tokenvm.errors import RequestError
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.schedule.structured_outputs import StructuredOutputsParams


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "exactly one of"),
        ({"json": {}, "regex": "a"}, "exactly one of"),
        ({"structural_tag": "x"}, "structural_tag"),
        ({"json": "{"}, "not JSON"),
        ({"json": [1]}, "no schema"),
        ({"json": {"a": ...}}, "not JSON"),
        ({"json": {"a": float("nan")}}, "not JSON"),
        ({"regex": ""}, "regex"),
        ({"regex": 5}, "regex"),
        ({"grammar": ["a"]}, "grammar"),
        ({"choice": []}, "choice"),
        ({"choice": ["a", ""]}, "choice"),
        ({"choice": "ab"}, "choice"),
        ({"json_object": 1}, "json_object"),
        ({"regex": "a", "whitespace_pattern": " "}, "JSON only"),
        ({"json": {}, "whitespace_pattern": " ", "disable_any_whitespace": True}, "one of the two"),
        ("json", "StructuredOutputsParams"),
        (["json"], "StructuredOutputsParams"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(given: Any, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        SamplingParams(structured_outputs=given)


@pytest.mark.parametrize("beside", [{"ignore_eos": True}, {"allowed_token_ids": [1]}], ids=str)
def test_what_contradicts_a_structure_is_refused(beside: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(beside))):
        SamplingParams(structured_outputs={"json_object": True}, **beside)


def test_a_dict_and_the_parameters_are_the_same_and_can_be_looked_up() -> None:
    schema = {"type": "object", "properties": {}}
    one = SamplingParams(structured_outputs={"json": schema}).structure
    other = StructuredOutputsParams(json='{"type":"object",  "properties":{}}')
    assert one == other
    assert len({one, other, StructuredOutputsParams(choice=["a"])}) == 2
    assert other.kind == "json"


@pytest.mark.parametrize(
    "params",
    [{"allowed_token_ids": [9]}, {"bad_words_token_ids": [[1, 9]]}, {"logit_bias": {9: 1.0}}],
    ids=str,
)
def test_tokens_that_a_model_does_not_have_are_refused_by_name(params: dict[str, Any]) -> None:
    SamplingParams(**params).refuse_unknown(10)
    with pytest.raises(RequestError, match=next(iter(params))):
        SamplingParams(**params).refuse_unknown(9)
