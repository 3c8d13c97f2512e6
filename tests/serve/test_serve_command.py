"""`tokenvm serve` and `tokenvm ping` as people type them."""

import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from serve_world import Server, serving

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


def test_a_model_that_is_not_there_is_told(tokenvm: Run) -> None:
    code, _, error = tokenvm("serve", "./no/such/model", "--port=0", "--metrics-port=0")
    assert code == 2
    assert "no/such/model" in error


def test_https_keys_and_json_logs_together(model_folder: Path, tmp_path: Path) -> None:
    """A server as one would put it into production, with another name and its key in the environment."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    options = [
        f"--ssl-certfile={certificate}",
        f"--ssl-keyfile={key}",
        "--log-format=json",
        "--metrics-compat=vllm",
    ]
    with serving(model_folder, tmp_path, *options, TOKENVM_API_KEY="secret-7") as running:
        assert running.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=running.url, verify=trusted) as client:
            assert client.get("/v1/models").status_code == 401
            headers = {"Authorization": "Bearer secret-7", "X-Request-Id": "seen-1"}
            body = {"prompt": "hello", "max_tokens": 3}
            assert client.post("/v1/completions", json=body, headers=headers).status_code == 200
            assert "vllm:e2e_request_latency_seconds_count" in client.get("/metrics", headers=headers).text
        assert running.stop() == 0
    lines = [line for line in running.lines if "seen-1" in line and "/v1/completions" in line]
    assert len(lines) == 1
    assert lines[0].startswith("{")
    assert not [line for line in running.lines if "secret-7" in line or "hello" in line]
