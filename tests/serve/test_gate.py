"""Keys, bounds, ids, CORS and failures, on an application without an engine."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tokenvm.errors import ConfigError, EngineDeadError
from tokenvm.serve.app import create_app
from tokenvm.serve.gate import Gate
from tokenvm.serve.keys import Keys, read_keys
from tokenvm.serve.logs import JsonLines, TextLines
from tokenvm.serve.meter import Meter
from tokenvm.serve.settings import ServeSettings


class Pretended:
    """A keeper whose engine does not stand; `stats` fails as told."""

    restarts = 3
    ready = False
    error: Exception = EngineDeadError("it is gone")

    @property
    def llm(self) -> "Pretended":
        return self

    plan = {"crowd": 2, "max_model_len": 100}  # noqa: RUF012 - a constant here

    def get_tokenizer(self) -> None:
        return None

    async def stats(self) -> dict[str, Any]:
        raise self.error


def ask(settings: ServeSettings, method: str, path: str, **more: Any) -> httpx.Response:
    async def asked() -> httpx.Response:
        app = create_app(Pretended(), settings)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.request(method, path, **more)

    return asyncio.run(asked())


PLAIN = ServeSettings("m")
LOCKED = ServeSettings("m", api_keys=("first", "sécond"))


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Bearer ", 401),
        ("Basic first", 401),
        ("first", 401),
        ("Bearer first", 200),
        ("bearer  first", 200),
    ],
)
def test_a_key_is_asked_for_everywhere_but_where_watchers_look(header: str | None, status: int) -> None:
    headers = {"Authorization": header} if header else {}
    for path in ("/v1/models", "/version", "/load", "/openapi.json"):
        answer = ask(LOCKED, "GET", path, headers=headers)
        assert answer.status_code == status
        if status == 401:
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.json()["error"]["type"] == "authentication_error"
    assert ask(LOCKED, "GET", "/health").status_code == 200
    assert ask(LOCKED, "GET", "/ready").status_code == 503


def test_keys_come_from_a_file_the_environment_and_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n one \n\ntwo\n")
    assert read_keys(["zero"], file, {"TOKENVM_API_KEY": "a,b"}) == ("zero", "a", "b", "one", "two")
    assert Keys(()).accept("")
    assert not Keys(("a",)).accept("Bearer b")
    for keys, found, words in (
        ([], tmp_path / "none", "cannot be read"),
        ([""], None, "is empty"),
        ([], tmp_path / "empty", "holds no key"),
    ):
        (tmp_path / "empty").write_text("# nothing\n")
        with pytest.raises(ConfigError, match=words):
            read_keys(keys, found, {})


def test_keys_are_in_no_settings_that_are_printed() -> None:
    assert "first" not in repr(LOCKED)


def test_bodies_are_bounded_announced_or_not() -> None:
    small = ServeSettings("m", max_body_bytes=100)
    body = json.dumps({"prompt": "a" * 200}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 50):
            yield body[at : at + 50]

    kind = {"Content-Type": "application/json"}
    for content in (body, pieces()):
        answer = ask(small, "POST", "/v1/completions", content=content, headers=kind)
        assert answer.status_code == 413
        assert "100 bytes" in answer.json()["error"]["message"]


def test_a_request_keeps_a_decent_id_of_its_own() -> None:
    assert (
        ask(PLAIN, "GET", "/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    )
    for odd in ("a b", "x" * 200, "<script>"):
        given = ask(PLAIN, "GET", "/health", headers={"X-Request-Id": odd}).headers["x-request-id"]
        assert given != odd
        assert len(given) == 32


def test_web_pages_may_not_ask_unless_named() -> None:
    page = {"Origin": "http://page.example"}
    assert "access-control-allow-origin" not in ask(PLAIN, "GET", "/health", headers=page).headers
    named = ServeSettings("m", cors_origins=("http://page.example",))
    assert ask(named, "GET", "/health", headers=page).headers["access-control-allow-origin"] == page["Origin"]
    other = {"Origin": "http://other.example"}
    assert "access-control-allow-origin" not in ask(named, "GET", "/health", headers=other).headers


def test_browsers_ask_whether_they_may_ask_without_a_key() -> None:
    page = {"Origin": "http://page.example"}
    named = ServeSettings("m", api_keys=("first",), cors_origins=("http://page.example",))
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = ask(named, "OPTIONS", "/v1/completions", headers=page | asking)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == page["Origin"]
    assert answer.headers["access-control-allow-headers"] == "authorization"
    refused = ask(named, "GET", "/v1/models", headers=page)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, page["Origin"])


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 404),
        ("http://here", 404),
        ("https://HERE", 404),
        ("http://page.example", 404),
        ("http://other.example", 403),
        ("http://here.example", 403),
        ("null", 403),
        ("http://[", 403),
        ("", 403),
    ],
)
def test_a_page_that_is_not_named_cannot_drive_a_server_without_keys(origin: str | None, status: int) -> None:
    named = ServeSettings("m", cors_origins=("http://page.example",))
    headers = {} if origin is None else {"Origin": origin}
    answer = ask(
        named, "POST", "/v1/completions", headers=headers, content=b'{"prompt": "a", "model": "none"}'
    )
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == ("model_not_found" if status == 404 else "origin_not_allowed")
    assert ask(ServeSettings("m", cors_origins=("*",)), "GET", "/health", headers=headers).status_code == 200


def test_prompts_that_are_too_long_never_reach_the_engine() -> None:
    for more in ({}, {"stream": True}, {"truncate_prompt_tokens": 100}):
        answer = ask(PLAIN, "POST", "/v1/completions", json={"prompt": [1] * 200, **more})
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert "shorten it to 99 tokens" in answer.json()["error"]["message"]


def test_an_answer_that_nobody_waited_for_is_counted_as_such() -> None:
    async def silent(_scope: Any, _receive: Any, _send: Any) -> None:
        """The client has gone before anything was said."""

    meter = Meter()
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    asyncio.run(Gate(silent, PLAIN, meter)(scope, None, None))
    assert list(meter.answers) == [("POST", "none", "4xx")]


def test_a_dead_engine_is_503_and_its_metrics_go_on() -> None:
    answer = ask(PLAIN, "GET", "/v1/cache")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "engine_restarting"
    text = ask(PLAIN, "GET", "/metrics").text
    assert "tokenvm_engine_up 0.0" in text
    assert "tokenvm_engine_restarts_total 3.0" in text


def test_a_bug_is_500_with_no_word_of_the_inside(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Pretended, "error", ValueError("secret inside"))
    answer = ask(PLAIN, "GET", "/v1/cache", headers={"X-Request-Id": "bug-1"})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    (record,) = [one for one in caplog.records if one.exc_info]
    line = json.loads(JsonLines().format(record))
    assert (line["level"], line["request_id"]) == ("error", "bug-1")
    assert "secret inside" in line["trace"]


def test_lines_of_the_log_are_objects_or_text() -> None:
    record = logging.LogRecord("tokenvm.serve", logging.INFO, "", 0, "request", (), None)
    record.fields = {"status": 200, "path": "/v1/models"}
    line = json.loads(JsonLines().format(record))
    assert {key: line[key] for key in ("level", "message", "status", "path")} == {
        "level": "info",
        "message": "request",
        "status": 200,
        "path": "/v1/models",
    }
    assert TextLines().format(record) == "INFO tokenvm.serve: request status=200 path=/v1/models"
