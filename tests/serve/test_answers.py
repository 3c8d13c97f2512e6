"""What answers hold: echoes, log-probabilities, several answers, usage, token ids; the same streamed and whole."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from serve_world import Server

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TALK = [{"role": "user", "content": "hello world"}]
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


def ok(server: Server, path: str, **body: Any) -> dict[str, Any]:
    answer = server.post(path, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chunks(server: Server, path: str, **body: Any) -> Iterator[dict[str, Any]]:
    """The events of a stream; its end must be there."""
    lines = [line for line in server.post(path, **body, stream=True).text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return (json.loads(line.removeprefix("data: ")) for line in lines[:-1])


def joined(found: Iterator[dict[str, Any]], index: int) -> dict[str, Any]:
    """One choice of a stream, put together as a client does."""
    whole: dict[str, Any] = {"text": "", "logprobs": {}, "token_ids": [], "finish_reason": None}
    for chunk in found:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                whole["text"] += choice["text"]
                whole["token_ids"] += choice.get("token_ids", [])
                for key, values in (choice["logprobs"] or {}).items():
                    whole["logprobs"].setdefault(key, []).extend(values)
                whole["finish_reason"] = choice["finish_reason"] or whole["finish_reason"]
    return whole


def test_every_form_of_prompt_is_answered_in_order(server: Server) -> None:
    ids = ok(server, "/tokenize", prompt="hello world")["tokens"]

    def texts(prompt: Any) -> list[str]:
        choices = ok(server, TEXT, prompt=prompt, max_tokens=5, **GREEDY)["choices"]
        assert [choice["index"] for choice in choices] == [*range(len(choices))]
        return [choice["text"] for choice in choices]

    one, other = texts("hello world"), texts("abc")
    assert texts(ids) == one
    assert (
        texts(["hello world", "abc"])
        == texts([ids, ok(server, "/tokenize", prompt="abc")["tokens"]])
        == one + other
    )


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_of_several_prompts_and_answers_is_the_whole(server: Server, echo: bool) -> None:
    body = {
        "prompt": [[5, 6, 7], [8, 9]], "n": 2, "seed": 7, "max_tokens": 6, "ignore_eos": True, "logprobs": 2,
        "echo": echo, "return_token_ids": True,
    }  # fmt: skip
    whole = ok(server, TEXT, **body)
    found = list(chunks(server, TEXT, **body, stream_options={"include_usage": True}))
    assert found[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 24
    assert all(chunk["usage"] is None for chunk in found[:-1])
    for choice in whole["choices"]:
        streamed = joined(iter(found), choice["index"])
        assert streamed == {key: choice[key] for key in streamed}
        assert len(choice["logprobs"]["tokens"]) == 6 + (echo and len(choice["prompt_token_ids"]))


def test_echo_scores_the_prompt_as_evaluation_harnesses_ask(server: Server) -> None:
    (choice,) = ok(server, TEXT, prompt="hello world", echo=True, max_tokens=1, logprobs=1, **GREEDY)[
        "choices"
    ]
    scores = choice["logprobs"]
    ids = ok(server, "/tokenize", prompt="hello world")["tokens"]
    assert choice["text"].startswith("hello world")
    assert "".join(scores["tokens"][:-1]) == "hello world"
    assert scores["token_logprobs"][0] is None
    assert scores["top_logprobs"][0] is None
    assert len(scores["token_logprobs"]) == len(ids) + 1 == len(scores["text_offset"])
    assert all(value < 0 for value in scores["token_logprobs"][1:])
    for text, value, best in zip(
        scores["tokens"], scores["token_logprobs"], scores["top_logprobs"], strict=True
    ):
        assert best is None or best[text] == value
    assert [
        choice["text"][at:][: len(t)] for at, t in zip(scores["text_offset"], scores["tokens"], strict=True)
    ][: len(ids)] == scores["tokens"][: len(ids)]


def test_a_prompt_can_be_scored_alone(server: Server) -> None:
    (choice,) = ok(server, TEXT, prompt="hello", echo=True, max_tokens=0, logprobs=0)["choices"]
    assert choice["text"] == "hello"
    assert choice["logprobs"]["top_logprobs"] is None
    assert "".join(choice["logprobs"]["tokens"]) == "hello"


def test_the_best_of_several_is_the_likeliest(server: Server) -> None:
    body = {
        "prompt": [5, 6],
        "max_tokens": 5,
        "seed": 3,
        "temperature": 1.5,
        "logprobs": 0,
        "ignore_eos": True,
    }
    all_four = ok(server, TEXT, **body, n=4)["choices"]
    likely = sorted(all_four, key=lambda one: -sum(one["logprobs"]["token_logprobs"]))
    kept = ok(server, TEXT, **body, n=2, best_of=4)
    assert [one["text"] for one in kept["choices"]] == [one["text"] for one in likely[:2]]
    assert kept["usage"]["completion_tokens"] == 20
    without = body | {"logprobs": None}
    assert [one["logprobs"] for one in ok(server, TEXT, **without, n=1, best_of=2)["choices"]] == [None]


def test_chat_tells_logprobs_with_bytes(server: Server) -> None:
    body = {"messages": TALK, "max_tokens": 4, "logprobs": True, "top_logprobs": 3, **GREEDY}
    (choice,) = ok(server, CHAT, **body)["choices"]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 4
    for entry in entries:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"], "greedy takes the best"
        assert len(entry["top_logprobs"]) == 3
    streamed = [
        entry
        for chunk in chunks(server, CHAT, **body)
        for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == entries
    named = ok(server, CHAT, **body, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]["content"]
    assert all(entry["token"].startswith("token_id:") for entry in named)


def test_a_prefix_that_was_read_before_is_told(server: Server) -> None:
    long = [*range(5, 85)]
    salt = {"cache_salt": "usage"}
    first = ok(server, TEXT, prompt=long, max_tokens=1, **salt)["usage"]
    again = ok(server, TEXT, prompt=long, max_tokens=1, **salt)["usage"]
    other = ok(server, TEXT, prompt=long, max_tokens=1, cache_salt="other")["usage"]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in (first, again, other)]
    assert cached[0] == cached[2] == 0 < cached[1] < 80
    assert again["prompt_tokens"] == 80


def test_stop_strings_end_the_text_and_are_named(server: Server) -> None:
    whole = ok(server, TEXT, prompt="hello", max_tokens=40, **GREEDY)["choices"][0]["text"]
    stop = whole[10:13]
    (choice,) = ok(server, TEXT, prompt="hello", max_tokens=400, stop=[stop], **GREEDY)["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert choice["text"] == whole[: whole.index(stop)]
    streamed = joined(chunks(server, TEXT, prompt="hello", max_tokens=400, stop=[stop], **GREEDY), 0)
    assert streamed["text"] == choice["text"]


def test_vllms_fields_are_obeyed(server: Server) -> None:
    body = {"prompt": [5, 6, 7, 8], "max_tokens": 6, "ignore_eos": True, "return_token_ids": True}

    def ids(**more: Any) -> list[int]:
        return ok(server, TEXT, **body, **more)["choices"][0]["token_ids"]

    greedy = ids(temperature=0)
    assert ids(top_k=1, temperature=1.9) == ids(min_p=1.0, temperature=1.9) == greedy
    assert ids(temperature=0, truncate_prompt_tokens=4) == greedy
    assert ids(temperature=0, logit_bias={"9": 100}) == [9] * 6
    assert ids(temperature=1, seed=5) == ids(temperature=1, seed=5)
    stopped = ok(server, TEXT, **body, temperature=0, stop_token_ids=[greedy[2]], min_tokens=1)["choices"][0]
    assert stopped["stop_reason"] == greedy[2]
    scored = ok(server, TEXT, **body, prompt_logprobs=1)["choices"][0]["prompt_logprobs"]
    assert scored[0] is None
    assert all(
        {"logprob", "rank", "decoded_token"} == set(one) for best in scored[1:] for one in best.values()
    )


def test_a_conversation_goes_on_from_its_last_message(server: Server) -> None:
    talk = [*TALK, {"role": "assistant", "content": "hell"}]
    rendered = ok(server, "/tokenize", messages=talk, continue_final_message=True, return_token_strs=True)
    assert "".join(rendered["token_strs"]).endswith("assistant\nhell")
    opened = ok(server, "/tokenize", messages=TALK, return_token_strs=True)
    assert "".join(opened["token_strs"]).endswith("<|im_start|>assistant\n")
    assert ok(server, "/detokenize", tokens=rendered["tokens"])["prompt"].endswith("assistant\nhell")
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "hello "}, {"type": "text", "text": "world"}]}
    ]
    assert ok(server, "/tokenize", messages=parts)["tokens"] == opened["tokens"]
    asked = ok(server, CHAT, messages=talk, continue_final_message=True, max_tokens=1)
    assert asked["usage"]["prompt_tokens"] == rendered["count"]
