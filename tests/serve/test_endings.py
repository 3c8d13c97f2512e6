"""Servers and engines that end: killed, drained, stopped; and clients that go away."""

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from serve_world import BOUND_S, LONG, Server, is_gone, load, serving, until

HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)


@pytest.fixture(scope="module")
def own(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose engine is killed, and which the last test with it ends."""
    cache = tmp_path_factory.mktemp("cache")
    with serving(model_folder, cache, f"--drain={BOUND_S}", f"--restart-wait={BOUND_S}") as running:
        yield running


def test_a_killed_engine_fails_its_requests_and_the_next_one_works(own: Server) -> None:
    """Whole answers get 503 with Retry-After, streams an error event; who asks meanwhile waits for the next engine."""

    def whole() -> httpx.Response:
        return httpx.post(f"{own.url}/v1/completions", json=LONG, timeout=BOUND_S)

    def streamed() -> str:
        return httpx.post(f"{own.url}/v1/completions", json=LONG | {"stream": True}, timeout=BOUND_S).text

    with ThreadPoolExecutor() as pool:
        wholes, streams = (
            [pool.submit(whole) for _ in range(3)],
            [pool.submit(streamed) for _ in range(3)],
        )
        until(lambda: load(own) == 6)
        os.kill(own.engine_pid, signal.SIGKILL)
        answers, texts = [one.result() for one in wholes], [one.result() for one in streams]
    assert own.http.get("/ready").status_code == 503
    assert own.http.get("/health").status_code == 200
    assert {answer.status_code for answer in answers} == {503}
    assert all(answer.headers["retry-after"] == "1" for answer in answers)
    assert all("engine_restarting" in text for text in texts)
    answer = own.post("/v1/completions", prompt="hello", max_tokens=2)
    assert answer.status_code == 200, answer.text
    assert own.http.get("/ready").status_code == 200
    assert "tokenvm_engine_restarts_total 1.0" in own.http.get("/metrics").text


def test_sigterm_drains_and_nothing_is_left(own: Server) -> None:
    engine = own.engine_pid
    with httpx.stream(
        "POST", f"{own.url}/v1/completions", json=LONG | {"stream": True, "max_tokens": 800}
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        own.process.send_signal(signal.SIGTERM)
        text = "\n".join(lines)
    assert text.rstrip().endswith("data: [DONE]")
    assert '"finish_reason":"length"' in text
    assert own.process.wait(BOUND_S) == 0
    until(lambda: is_gone(engine))


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_away_frees_its_pages(server: Server, streams: bool) -> None:
    begun = server.http.get("/v1/cache").json()["steps"]
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port)) as line:
        body = b'{"prompt": [5, 6], "max_tokens": 4000, "ignore_eos": true, "stream": %s}'
        body %= b"true" if streams else b"false"
        line.sendall(HEAD % len(body) + body)
        until(lambda: load(server) == 1)
        if streams:
            line.recv(100)
    until(lambda: load(server) == 0)
    until(lambda: not any(server.http.get("/v1/cache").json()["requests"].values()))
    assert server.http.get("/v1/cache").json()["steps"] < begun + 3900


def test_a_client_that_never_reads_stalls_nobody(server: Server) -> None:
    address = httpx.URL(server.url)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        line.connect((address.host, address.port))
        body = (
            b'{"prompt": [5], "max_tokens": 4000, "ignore_eos": true, "stream": true, "n": 4, "logprobs": 20}'
        )
        line.sendall(HEAD % len(body) + body)
        until(lambda: load(server) == 4)
        for _ in range(5):
            answer = server.post("/v1/completions", prompt="hello", max_tokens=4)
            assert answer.status_code == 200
        assert load(server) == 4
    until(lambda: load(server) == 0)
