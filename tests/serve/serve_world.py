"""A real server process around a tiny random model, and what tests ask of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
BOUND_S = 60.0
"""Nothing here takes so long, unless it hangs."""

SMALL = [
    "--block-tokens=16",
    "--kv-limit=1MB",
    "--host-memory=1MB",
    "--nvme-limit=32MB",
    "--max-num-seqs=8",
    "--max-tokens-per-forward=64",
    "--threads=1",
    "--port=0",
    "--metrics-port=0",
    "--served-model-name=tiny",
]


LONG = {"prompt": [5, 6, 7], "max_tokens": 4000, "ignore_eos": True, "temperature": 0}


class Server:
    """A `tokenvm serve` that listens. `lines` are those of its log so far."""

    def __init__(self, process: subprocess.Popen[str], url: str, lines: list[str], **client: Any) -> None:
        self.process = process
        self.url = url
        self.lines = lines
        self.http = httpx.Client(base_url=url, timeout=BOUND_S, **client)

    @property
    def engine_pid(self) -> int:
        """The engine process: its child."""
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        (pid,) = task.read_text().split()
        return int(pid)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def error(self, path: str, status: int = 400, **body: Any) -> dict[str, Any]:
        """The error object that a body is refused with."""
        answer = self.post(path, **body)
        assert answer.status_code == status, answer.text
        (key, error) = next(iter(answer.json().items()))
        assert key == "error"
        assert set(error) == {"message", "type", "param", "code"}
        return error

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(BOUND_S)


@contextmanager
def serving(
    model: Path, cache: Path, *options: str, client: Mapping[str, Any] | None = None, **environment: str
) -> Iterator[Server]:
    """Run a server until the end of the block; its cache folder is its own. `client` is for its httpx.Client."""
    words = [
        sys.executable,
        "-m",
        "tokenvm",
        "serve",
        str(model),
        *SMALL,
        f"--state-dir={cache}/state",
        *options,
    ]
    world = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TOKENVM_CACHE": str(cache), **environment}
    process = subprocess.Popen(
        words, env=world, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    reader.start()
    try:
        running = Server(process, _url(process, lines), lines, **(client or {}))
        with running.http:
            yield running
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()


def _url(process: subprocess.Popen[str], lines: list[str]) -> str:
    for line in process.stdout:
        if found := re.search(r"serving on (https?://\S+)/v1", line):
            return found[1]
    raise AssertionError(f"the server ended: {lines}")


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.01)


def load(server: Server) -> int:
    return server.http.get("/load").json()["server_load"]
