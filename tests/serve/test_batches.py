"""Files and batches through OpenAI's own client: to their end, cancelled, and across a restart of the server."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serve_world import BOUND_S, Server, serving

TALK = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=BOUND_S, max_retries=0) as client:
        yield client


def line(name: str, body: dict[str, Any], url: str = "/v1/chat/completions") -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body})


def upload(client: openai.OpenAI, lines: list[str], name: str = "in.jsonl") -> Any:
    return client.files.create(file=(name, "\n".join(lines).encode()), purpose="batch")


def begin(client: openai.OpenAI, lines: list[str], endpoint: str = "/v1/chat/completions") -> Any:
    file = upload(client, lines)
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"for": "test"}
    )


def ended(client: openai.OpenAI, id_: str) -> Any:
    deadline_s = time.monotonic() + BOUND_S
    while True:
        batch = client.batches.retrieve(id_)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
        assert time.monotonic() < deadline_s, batch
        time.sleep(0.02)


def entries(client: openai.OpenAI, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in client.files.content(file_id).text.splitlines()]


def test_a_batch_says_what_single_requests_say(client: openai.OpenAI) -> None:
    body = {"model": "tiny", "messages": TALK, "max_tokens": 5, "temperature": 0}
    batch = begin(client, [line("b", body), "", line("bad", {"messages": [], "x": 1}), line("a", body)])
    done = ended(client, batch.id)
    assert (done.status, done.metadata) == ("completed", {"for": "test"})
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    single = client.chat.completions.create(**body).choices[0].message.content
    found = entries(client, done.output_file_id)
    assert [one["custom_id"] for one in found] == ["b", "a"]
    for one in found:
        assert one["response"]["status_code"] == 200
        assert one["response"]["body"]["choices"][0]["message"]["content"] == single
    (bad,) = entries(client, done.error_file_id)
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("bad", 400)
    assert "error" in bad["response"]["body"]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"prompt": ["hello", "world"], "max_tokens": 3}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 3}),
    ],
)
def test_every_endpoint_answers_batches(client: openai.OpenAI, endpoint: str, body: dict[str, Any]) -> None:
    lines = [line("a", body, endpoint), line("b", {**body, "stream": True}, endpoint)]
    done = ended(client, begin(client, lines, endpoint).id)
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 1, 1)
    (found,) = entries(client, done.output_file_id)
    assert found["response"]["body"]["object"] in ("text_completion", "response")


def test_a_file_with_faults_is_refused_line_by_line(client: openai.OpenAI) -> None:
    lines = [
        line("a", {}),
        "{",
        line("a", {}),
        line("c", {}, "/v1/completions"),
        "[1]",
        json.dumps({"custom_id": "d"}),
    ]
    done = ended(client, begin(client, lines).id)
    assert done.status == "failed"
    faults = [(fault.line, fault.param) for fault in done.errors.data]
    assert faults == [(2, None), (3, "custom_id"), (4, "url"), (5, None), (6, "method")]
    empty = ended(client, begin(client, ["", ""]).id)
    assert [fault.code for fault in empty.errors.data] == ["empty_file"]


def test_files_are_listed_read_and_deleted(client: openai.OpenAI) -> None:
    made = [upload(client, [f"line {at}"], f"{at}.jsonl") for at in range(3)]
    newest = client.files.list(limit=2)
    assert [file.id for file in newest.data] == [made[2].id, made[1].id]
    assert newest.has_more
    assert [file.id for file in client.files.list(after=made[1].id, limit=1).data] == [made[0].id]
    assert client.files.retrieve(made[0].id) == made[0]
    assert client.files.content(made[0].id).text == "line 0"
    assert client.files.delete(made[0].id).deleted
    with pytest.raises(openai.NotFoundError, match="lists what there is"):
        client.files.retrieve(made[0].id)


def test_names_of_uploads_never_become_paths(client: openai.OpenAI, server: Server) -> None:
    for name in ("../../../tmp/escaped.jsonl", "/etc/passwd", "a\x00b", "x" * 3000):
        file = upload(client, ["text"], name)
        assert client.files.content(file.id).text == "text"
    assert not Path("/tmp/escaped.jsonl").exists()
    for id_ in ("..%2f..%2fetc%2fpasswd", "file-..", "lock", "index.sqlite3"):
        assert server.http.get(f"/v1/files/{id_}/content").status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"colour": 1}, "colour"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(
    client: openai.OpenAI, server: Server, body: dict[str, Any], param: str
) -> None:
    usual = {
        "input_file_id": upload(client, ["x"]).id,
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    }
    assert server.error("/v1/batches", **(usual | body))["param"] == param


def test_a_batch_is_cancelled_and_keeps_what_was_answered(client: openai.OpenAI) -> None:
    body = {"messages": TALK, "max_tokens": 3000, "ignore_eos": True}
    batch = begin(
        client, [line("first", {**body, "max_tokens": 1}), *(line(str(at), body) for at in range(40))]
    )
    while client.batches.retrieve(batch.id).request_counts.completed < 1:
        time.sleep(0.02)
    assert client.batches.cancel(batch.id).status == "cancelling"
    done = ended(client, batch.id)
    assert done.status == "cancelled"
    assert done.cancelled_at is not None
    assert "first" in [one["custom_id"] for one in entries(client, done.output_file_id)]
    with pytest.raises(openai.BadRequestError, match="nothing to cancel"):
        client.batches.cancel(batch.id)
    ids = [one.id for one in client.batches.list(limit=100).data]
    assert batch.id in ids


def test_a_batch_goes_on_after_a_restart(model_folder: Path, tmp_path: Path) -> None:
    bodies = [
        {"messages": TALK, "max_tokens": 30 + at, "temperature": 0, "ignore_eos": True} for at in range(40)
    ]
    lines = [line(str(at), body) for at, body in enumerate(bodies)]
    with serving(model_folder, tmp_path) as first, _client(first) as client:
        batch = begin(client, lines)
        while client.batches.retrieve(batch.id).request_counts.completed < 3:
            time.sleep(0.01)
        first.process.kill()
        first.process.wait()
    with serving(model_folder, tmp_path) as second, _client(second) as client:
        done = ended(client, batch.id)
        found = entries(client, done.output_file_id)
    assert (done.status, done.request_counts.completed) == ("completed", 40)
    assert [one["custom_id"] for one in found] == [str(at) for at in range(40)]
    sizes = [one["response"]["body"]["usage"]["completion_tokens"] for one in found]
    assert sizes == [body["max_tokens"] for body in bodies]


def _client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=BOUND_S, max_retries=0)
