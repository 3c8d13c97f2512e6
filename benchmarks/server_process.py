"""A `tokenvm serve` process for scripts: started, waited for, ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

END_S = 60.0


@dataclass
class Served:
    """A server that listens at `url`."""

    process: subprocess.Popen[str]
    url: str

    @property
    def engine_pid(self) -> int | None:
        """The engine process, None while there is none."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None


@contextmanager
def serving(
    model: str, options: Sequence[str] = (), errors: int | None = subprocess.DEVNULL
) -> Iterator[Served]:
    """Serve a model on a free port until the end of the block; `errors` is where its log goes."""
    command = [sys.executable, "-m", "tokenvm", "serve", model, "--port=0", "--metrics-port=0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(os.environ)
    )
    try:
        yield Served(process, _url(process))
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"serving on (https?://\S+)/v1", line):
            return found[1]
    raise SystemExit("the server ended before it listened: start it by hand to see why")
