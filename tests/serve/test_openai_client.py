"""OpenAI's own client against a real server: chat and completions, whole and streamed, sync and async."""

import asyncio
from collections.abc import Iterator

import openai
import pytest
from serve_world import BOUND_S, Server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=BOUND_S, max_retries=0) as client:
        yield client


TALK = [{"role": "user", "content": "hello world"}]


def test_a_conversation_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=TALK, max_tokens=5, temperature=0)
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert (answer.model, choice.message.role, choice.finish_reason) == ("tiny", "assistant", "length")
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


def test_a_stream_says_what_the_whole_says(client: openai.OpenAI) -> None:
    asked = {"model": "default", "messages": TALK, "max_completion_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    options = {"include_usage": True}
    chunks = [*client.chat.completions.create(**asked, stream=True, stream_options=options)]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12


def test_the_model_is_listed_and_others_are_not_there(client: openai.OpenAI) -> None:
    assert [card.id for card in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'tiny'"):
        client.models.retrieve("other/model")
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.completions.create(model="gpt-x", prompt="a")


def test_the_async_client_asks_many_things_at_once(server: Server) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            return await asyncio.gather(*(one(client, at) for at in range(20)))

    async def one(client: openai.AsyncOpenAI, at: int) -> str:
        stream = await client.completions.create(
            model="tiny", prompt=[5 + at, 6, 7], max_tokens=6, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    def alone(at: int) -> str:
        answer = server.post("/v1/completions", prompt=[5 + at, 6, 7], max_tokens=6, temperature=0)
        return answer.json()["choices"][0]["text"]

    assert asyncio.run(ask()) == [alone(at) for at in range(20)]
