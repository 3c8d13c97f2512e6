"""A `tokenvm serve` process to be measured: started, waited for, ended."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokenvm.errors import EngineDeadError

END_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ServedProcess:
    """A server that listens at `url`."""

    process: subprocess.Popen[str]
    url: str

    @property
    def engine_pids(self) -> list[int]:
        """The engine process; none while it is being replaced."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[:1]]

    @property
    def peak_bytes(self) -> dict[str, int]:
        """The most memory that the server and its engine ever had resident."""
        pids = (self.process.pid, *self.engine_pids)
        return {name: _peak(pid) for name, pid in zip(("server", "engine"), pids, strict=False)}


@contextmanager
def served_process(
    model: str, options: Sequence[str] = (), errors: int | None = subprocess.DEVNULL
) -> Iterator[ServedProcess]:
    """Serve a model on a free port until the end of the block; `errors` is where its log goes, None: to ours.

    Raises EngineDeadError where it does not come up.
    """
    command = [sys.executable, "-m", "tokenvm", "serve", model, "--port=0", "--metrics-port=0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        yield ServedProcess(process, _url(process))
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
    raise EngineDeadError("the server ended before it listened: type `tokenvm serve` to see why")


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0
