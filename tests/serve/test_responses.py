"""`/v1/responses` through OpenAI's own client: whole, streamed, with tools and with a schema."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from serve_world import BOUND_S, Server

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Ulm"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "name": "weather", "parameters": CITY}]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=BOUND_S, max_retries=0) as client:
        yield client


def test_text_is_answered_as_chat_answers_it(client: openai.OpenAI) -> None:
    reply = client.responses.create(
        model="tiny", input="hello", instructions="Be kind", max_output_tokens=6, temperature=0
    )
    talk = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(model="tiny", messages=talk, max_tokens=6, temperature=0)
    assert reply.output_text == chat.choices[0].message.content
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert reply.usage.input_tokens == chat.usage.prompt_tokens
    assert reply.usage.output_tokens == 6
    assert reply.instructions == "Be kind"


@pytest.mark.parametrize("more", [{}, {"tools": TOOLS, "tool_choice": "required"}], ids=["text", "call"])
def test_a_stream_tells_what_the_whole_tells(client: openai.OpenAI, more: dict[str, Any]) -> None:
    asked = {
        "model": "tiny",
        "input": "hello",
        "max_output_tokens": 60,
        "extra_body": {"seed": 4},
        **more,
    }
    whole = client.responses.create(**asked)
    events = [*client.responses.create(**asked, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:3]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
    ]
    assert events[-1].type == f"response.{whole.status}"
    last = events[-1].response
    assert [item.type for item in last.output] == [item.type for item in whole.output]
    assert last.usage.output_tokens == whole.usage.output_tokens
    assert last.usage.total_tokens == whole.usage.total_tokens
    if more:
        assert whole.status == "completed"
        parts = [event for event in events if event.type == "response.function_call_arguments.delta"]
        calls = [json.loads(item.arguments) for item in whole.output]
        for call in calls:
            jsonschema.validate(call, CITY)
        assert [json.loads(item.arguments) for item in last.output] == calls
        text = "".join(part.delta for part in parts if part.output_index == 0)
        assert text == whole.output[0].arguments
    else:
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == whole.output_text == last.output_text


def test_the_clients_own_stream_follows_the_events(client: openai.OpenAI) -> None:
    text = {"format": {"type": "json_schema", "name": "city", "schema": CITY}}
    with client.responses.stream(model="tiny", input="hello", text=text, max_output_tokens=40) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text
    jsonschema.validate(json.loads(final.output_text), CITY)


def test_an_answer_follows_a_schema_and_can_be_sent_back(client: openai.OpenAI) -> None:
    text = {"format": {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}}
    reply = client.responses.create(model="tiny", input="hello", text=text, max_output_tokens=40)
    jsonschema.validate(json.loads(reply.output_text), CITY)
    called = client.responses.create(
        model="tiny",
        input="hello",
        tools=TOOLS,
        tool_choice={"type": "function", "name": "weather"},
        max_output_tokens=60,
    )
    (call,) = called.output
    again = client.responses.create(
        model="tiny",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
            *[item.model_dump(exclude_none=True) for item in [*reply.output, *called.output]],
            {"type": "function_call_output", "call_id": call.call_id, "output": "sun"},
        ],
        tools=TOOLS,
        max_output_tokens=4,
    )
    assert again.usage.output_tokens <= 4


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"colour": 1}, "colour"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(server: Server, body: dict[str, Any], param: str) -> None:
    error = server.error("/v1/responses", **({"input": "hello"} | body))
    assert error["param"].startswith(param)
