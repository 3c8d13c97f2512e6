"""Every bad input is a 4xx with an error object that names the field, and the server goes on."""

import json
from typing import Any

import pytest
from serve_world import Server

TALK = [{"role": "user", "content": "hi"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    (TEXT, {"prompt": []}, "prompt", "is empty"),
    (TEXT, {"prompt": ""}, "", "empty"),
    (TEXT, {"prompt": [[]]}, "", "empty"),
    (TEXT, {"prompt": "a", "n": 0}, "n", "greater than or equal to 1"),
    (TEXT, {"prompt": "a", "n": -3}, "n", "greater than or equal to 1"),
    (TEXT, {"prompt": "a", "n": 1000}, "n", "at most 128"),
    (TEXT, {"prompt": "a", "max_tokens": 0}, "max_tokens", "echo=true"),
    (TEXT, {"prompt": "a", "max_tokens": 2**70}, "max_tokens", "less than"),
    (TEXT, {"prompt": "a", "temperature": -1}, "temperature", "greater than or equal to 0"),
    (TEXT, {"prompt": "a", "temperature": "hot"}, "temperature", "valid number"),
    (TEXT, {"prompt": "a", "top_p": 0}, "top_p", "greater than 0"),
    (TEXT, {"prompt": [10**6]}, "", "not in the vocabulary"),
    (TEXT, {"prompt": [2**40]}, "prompt", "less than"),
    (TEXT, {"prompt": ["a", 5]}, "prompt", "valid"),
    (TEXT, {"prompt": ["a"] * 2000}, "prompt", "2000 prompts"),
    (TEXT, {"prompt": "a" * 5000}, "", "shorten it"),
    (TEXT, {"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
    (TEXT, {"prompt": "a", "best_of": 1, "n": 2}, "best_of", "does not go with"),
    (TEXT, {"prompt": "a", "best_of": 2, "stream": True}, "best_of", "stream"),
    (TEXT, {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias.x", "pattern"),
    (TEXT, {"prompt": "a", "logit_bias": {"999": 1}}, "logit_bias", "999"),
    (TEXT, {"prompt": "a", "stop": ""}, "stop", "at least 1 character"),
    (TEXT, {"prompt": "a", "stop": ["a"] * 17}, "stop", "at most 16"),
    (TEXT, {"prompt": "a", "stop": "a" * 1025}, "stop", "at most 1024"),
    (TEXT, {"prompt": "a", "stop": ["a" * 1025]}, "stop", "at most 1024"),
    (TEXT, {"prompt": "a", "bad_words": ["a"] * 257}, "bad_words", "at most 256"),
    (TEXT, {"prompt": "a", "stop_token_ids": [1] * 1025}, "stop_token_ids", "at most 1024"),
    (TEXT, {"prompt": "a", "logit_bias": {str(at): 1 for at in range(1025)}}, "logit_bias", "at most 1024"),
    (TEXT, {"prompt": "a", "logprobs": -1}, "logprobs", "at most 20"),
    (TEXT, {"prompt": "a", "logprobs": 21}, "logprobs", "--max-logprobs"),
    (TEXT, {"prompt": "a", "prompt_logprobs": -1}, "prompt_logprobs", "at most 20"),
    (CHAT, {"messages": TALK, "prompt_logprobs": 10**6}, "prompt_logprobs", "at most 20"),
    (TEXT, {"prompt": "a", "min_tokens": 9, "max_tokens": 3}, "min_tokens", "at most max_tokens"),
    (TEXT, {"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
    (TEXT, {"prompt": "a", "colour": "red"}, "colour", "not a field"),
    (TEXT, {"prompt": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "leaves nothing"),
    (TEXT, {}, "prompt", "missing"),
    (CHAT, {"messages": []}, "messages", "at least 1"),
    (CHAT, {}, "messages", "missing"),
    (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'user'"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "text"),
    (CHAT, {"messages": TALK, "max_tokens": 0}, "max_tokens", "asks for nothing"),
    (CHAT, {"messages": TALK, "max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "one of them"),
    (CHAT, {"messages": TALK, "top_logprobs": 3}, "top_logprobs", "logprobs=true"),
    (CHAT, {"messages": TALK, "audio": {"voice": "x"}}, "audio", "not supported"),
    (CHAT, {"messages": TALK, "modalities": ["audio"]}, "modalities", "not supported"),
    (CHAT, {"messages": TALK, "store": True}, "store", "not supported"),
    (CHAT, {"messages": TALK, "functions": [{"name": "f"}]}, "functions", "use tools"),
    (CHAT, {"messages": TALK, "continue_final_message": True, "add_generation_prompt": True},
     "continue_final_message", "exclude each other"),
    ("/tokenize", {}, "prompt", "either prompt or messages"),
    ("/detokenize", {"tokens": [-1]}, "tokens.0", "greater than or equal to 0"),
    ("/v1/cache/pin", {}, "pin", "not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "field", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_bad_input_is_refused_by_name(
    server: Server, path: str, body: dict[str, Any], field: str, words: str
) -> None:
    error = server.error(path, **body)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    if field:
        assert (error["param"] or "").startswith(field)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "not JSON"),
        (b"", "body is missing"),
        (b"[]", "valid dictionary"),
        (b'{"prompt": "\\ud800"}', "not valid text"),
        (b'{"\\ud800": 1}', "unicode"),
        (b'{"prompt": "a", "model": "\\ud800"}', "unicode"),
        (b'{"prompt": NaN}', "valid"),
        (b'{"prompt": "a", "temperature": NaN}', "finite number"),
        (b'{"prompt": "a", "top_k": ' + b"9" * 5000 + b"}", "parsing the body"),
        (b'{"prompt": ' + b"[" * 100_000, "parsing the body"),
        (b"\xff\xfe{}", "JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bytes_that_are_no_request_are_refused(server: Server, raw: bytes, words: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = server.http.post(TEXT, content=raw, headers=headers)
    assert answer.status_code in (400, 404)
    assert words in answer.json()["error"]["message"]


def test_a_refused_stream_is_an_error_and_no_stream(server: Server) -> None:
    error = server.error(TEXT, prompt=[10**6], stream=True)
    assert "not in the vocabulary" in error["message"]
    error = server.error(TEXT, prompt="a" * 5000, stream=True)
    assert error["code"] == "context_length_exceeded"


def test_unknown_paths_and_methods_are_refused_alike(server: Server) -> None:
    lost = server.http.get("/v1/nothing")
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, "not_found")
    wrong = server.http.get(CHAT)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "/openapi.json" in wrong.json()["error"]["message"]


def test_harmless_values_of_fields_that_are_not_served_pass(server: Server) -> None:
    answer = server.post(
        CHAT, messages=TALK, max_tokens=1, store=False, modalities=["text"], service_tier="auto",
        audio=None, user="me", metadata={"a": "b"}, prompt_cache_key="k",
    )  # fmt: skip
    assert answer.status_code == 200, answer.text


def test_the_document_lists_every_endpoint(server: Server) -> None:
    document = server.http.get("/openapi.json").json()
    assert {CHAT, TEXT, "/v1/models", "/tokenize", "/metrics", "/ready"} <= set(document["paths"])
    assert "422" not in json.dumps(document)
