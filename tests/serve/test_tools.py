"""Structured outputs and tools through OpenAI's own client, whole and streamed."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from serve_world import BOUND_S, Server

TALK = [{"role": "user", "content": "hello world"}]
CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Bern", "Ulm"]}},
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
NOW = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=BOUND_S, max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **more: Any) -> Any:
    given = {"model": "tiny", "messages": TALK, "max_tokens": 60, "seed": 3, **more}
    return client.chat.completions.create(**given).choices[0]


def test_an_answer_follows_a_schema(client: openai.OpenAI) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    choice = ask(client, response_format=format_)
    jsonschema.validate(json.loads(choice.message.content), CITY)
    assert choice.finish_reason == "stop"
    assert isinstance(json.loads(ask(client, response_format={"type": "json_object"}).message.content), dict)


@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [
        ({"regex": "[ab]{3}"}, "[ab]{3}"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'root ::= "x" | "y"'}, "x|y"),
    ],
    ids=str,
)
def test_an_answer_follows_what_vllm_calls_structured_outputs(
    client: openai.OpenAI, wanted: dict[str, Any], pattern: str
) -> None:
    assert re.fullmatch(pattern, ask(client, extra_body={"structured_outputs": wanted}).message.content)
    answer = client.completions.create(
        model="tiny", prompt="hello", max_tokens=9, extra_body={"structured_outputs": wanted}
    )
    assert re.fullmatch(pattern, answer.choices[0].text)


def test_a_demanded_call_comes_whole_and_streamed_alike(client: openai.OpenAI) -> None:
    asked = {"tools": [WEATHER, NOW], "tool_choice": "required", "parallel_tool_calls": False}
    choice = ask(client, **asked)
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, call.type) == ("tool_calls", None, "function")
    assert call.function.name in ("weather", "now")
    chunks = [
        *client.chat.completions.create(
            model="tiny", messages=TALK, max_tokens=60, seed=3, stream=True, **asked
        )
    ]
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
    assert parts[0].id.startswith("call_")
    assert "".join(part.function.name or "" for part in parts) == call.function.name
    assert "".join(part.function.arguments or "" for part in parts) == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


@pytest.mark.parametrize("arguments", ["{city: Bern", "[" * 100_000, "3", ""], ids=lambda text: text[:12])
def test_a_call_that_is_no_json_may_be_sent_back(client: openai.OpenAI, arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments[:9000]}}
    talk = [*TALK, {"role": "assistant", "content": "", "tool_calls": [call]}]
    talk.append({"role": "tool", "tool_call_id": "1", "content": "that is no JSON"})
    body = {"truncate_prompt_tokens": 20}
    assert ask(client, messages=talk, tools=[WEATHER], max_tokens=1, extra_body=body) is not None


def test_a_named_function_is_called_with_arguments_of_its_schema(client: openai.OpenAI) -> None:
    choice = ask(
        client, tools=[NOW, WEATHER], tool_choice={"type": "function", "function": {"name": "weather"}}
    )
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    jsonschema.validate(json.loads(call.function.arguments), CITY)
    again = ask(
        client,
        messages=[
            *TALK,
            choice.message.model_dump(),
            {"role": "tool", "tool_call_id": call.id, "content": "sun"},
        ],
        tools=[WEATHER],
        tool_choice="none",
    )
    assert again.message.tool_calls is None


def test_with_auto_text_is_text(client: openai.OpenAI) -> None:
    asked = {"tools": [WEATHER], "max_tokens": 8, "temperature": 0}
    choice = ask(client, **asked)
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "length"
    stream = client.chat.completions.create(model="tiny", messages=TALK, stream=True, **asked)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == choice.message.content


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"choice": ["a"]}},
            "structured_outputs",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
        ),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tools": [NOW], "response_format": {"type": "json_object"}}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": []}, {"role": "user"}]}, "content"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(server: Server, body: dict[str, Any], param: str) -> None:
    assert server.error("/v1/chat/completions", **({"messages": TALK} | body))["param"] == param
