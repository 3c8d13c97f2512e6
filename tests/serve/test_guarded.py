"""A server as one puts it into production: HTTPS, a key, a small queue, logs for machines. The last test ends it."""

import contextlib
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serve_world import BOUND_S, LONG, Server, is_gone, load, serving, until

KEY = "secret-7"


@pytest.fixture(scope="module")
def guarded(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("guarded")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    options = [f"--ssl-certfile={certificate}", f"--ssl-keyfile={key}", "--log-format=json"]
    options += ["--metrics-compat=vllm", "--max-waiting=0", "--max-num-seqs=2"]
    trusted = ssl.create_default_context(cafile=str(certificate))
    client = {"verify": trusted, "headers": {"Authorization": f"Bearer {KEY}"}}
    with serving(model_folder, folder, *options, client=client, TOKENVM_API_KEY=KEY) as running:
        yield running


def test_https_and_a_key_are_asked_for_and_logs_tell_neither_key_nor_text(guarded: Server) -> None:
    assert guarded.url.startswith("https://")
    assert guarded.http.get("/v1/models", headers={"Authorization": "Bearer other"}).status_code == 401
    with pytest.raises(httpx.ConnectError):
        httpx.get(guarded.url)
    headers = {"X-Request-Id": "seen-1"}
    body = {"prompt": "hello", "max_tokens": 1}
    assert guarded.http.post("/v1/completions", json=body, headers=headers).status_code == 200
    until(lambda: any("seen-1" in line for line in guarded.lines))
    (line,) = [line for line in guarded.lines if "seen-1" in line]
    assert line.startswith("{")
    assert not [line for line in guarded.lines if KEY in line or "hello" in line]


def test_vllms_names_are_there(guarded: Server) -> None:
    text = guarded.http.get("/metrics").text
    assert "vllm:e2e_request_latency_seconds_count" in text
    assert "tokenvm_hits_total" in text


def test_beyond_the_queue_is_429_and_later_is_well(guarded: Server) -> None:
    with guarded.http.stream("POST", "/v1/completions", json=LONG | {"stream": True, "n": 2}) as running:
        lines = running.iter_lines()
        next(lines)
        assert load(guarded) == 2
        refused = guarded.post("/v1/completions", prompt="a", max_tokens=1)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
    assert refused.json()["error"]["code"] == "queue_full"
    until(lambda: load(guarded) == 0)
    assert guarded.post("/v1/completions", prompt="a", max_tokens=1).status_code == 200
    assert "ask for fewer" in guarded.error("/v1/completions", prompt="a", n=3)["message"]


def test_a_second_signal_stops_at_once(guarded: Server) -> None:
    engine = guarded.engine_pid
    with guarded.http.stream("POST", "/v1/completions", json=LONG | {"stream": True, "n": 2}) as answer:
        lines = answer.iter_lines()
        next(lines)
        guarded.process.send_signal(signal.SIGTERM)
        until(lambda: any("draining" in line for line in guarded.lines))
        guarded.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(httpx.HTTPError):
            assert '"finish_reason":"length"' not in "\n".join(lines)
    assert guarded.process.wait(BOUND_S) == 0
    until(lambda: is_gone(engine))
