"""`tokenvm serve` and `tokenvm ping` as people type them."""

import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from serve_world import Server

from tokenvm import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tokenvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TOKENVM_CACHE", str(tmp_path / "cache"))

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["tokenvm", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_ping_prints_the_answer(server: Server, tokenvm: Run) -> None:
    port = httpx.URL(server.url).port
    code, said, _ = tokenvm("ping", "hello", "--port", port, "--max-tokens", 4)
    text = server.post("/v1/completions", prompt="hello", max_tokens=4, temperature=0).json()["choices"][0][
        "text"
    ]
    assert (code, said) == (0, f"{text}\n(1 tokens in, 4 out)\n")
    code, said, _ = tokenvm("ping", "hello", "--chat", "--url", server.url, "--max-tokens", 3, "--hide")
    assert (code, said.endswith(" tokens in, 3 out)\n"), said.count("\n")) == (0, True, 1)


def test_ping_says_what_went_wrong(server: Server, tokenvm: Run) -> None:
    code, _, error = tokenvm("ping", "hello", "--url", server.url, "--model", "other")
    assert (code, "is not served here" in error) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, _, error = tokenvm("ping", "hello", "--port", port)
    assert (code, "start a server with `tokenvm serve`" in error) == (2, True)


def test_a_taken_port_is_told_before_anything_is_loaded(tokenvm: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, error = tokenvm("serve", "no/such/model", "--port", taken.getsockname()[1])
    assert code == 2
    assert "choose another --port" in error


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--ssl-certfile=x.pem"], "--ssl-keyfile FILE"),
        (["--ssl-certfile=x.pem", "--ssl-keyfile=y.pem"], "is not a file"),
        (["--log-format=xml"], "text or json"),
        (["--metrics-compat=statsd"], "type vllm"),
        (["--api-key-file=none"], "cannot be read"),
        (["--max-body=much"], "max-body"),
        (["--kv-limit=1MB", "--kv-cache-num-tokens=5"], "twice"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    tokenvm: Run, words: list[str], named: str
) -> None:
    code, _, error = tokenvm("serve", "no/such/model", "--port=0", *words)
    assert code == 2
    assert named in error
