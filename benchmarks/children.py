"""Forks of a process that has neither threads nor an engine: each works on its own, says things, and may be killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

Say = Callable[[Any], None]
Work = Callable[[Path, str, int, Say], None]
"""What a child does: with a folder, a mode and a seed, saying values that JSON can hold."""


class Child:
    """A fork that says things, one JSON value a line. Its parent has no threads and no engine."""

    def __init__(self, work: Work, folder: Path, mode: str, seed: int) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            self._live(work, folder, mode, seed, writer)
        os.close(writer)
        self._lines = os.fdopen(reader, "r", encoding="ascii")

    def _live(self, work: Any, folder: Path, mode: str, seed: int, writer: int) -> None:
        code = 1
        try:
            with os.fdopen(writer, "w", encoding="ascii") as out:

                def say(what: Any) -> None:
                    out.write(json.dumps(what) + "\n")
                    out.flush()

                work(folder, mode, seed, say)
            code = 0
        finally:
            os._exit(code)

    def hear(self) -> Any:
        """Return the next thing it says; EOFError once it has ended."""
        line = self._lines.readline()
        if not line.endswith("\n"):
            raise EOFError("the child has ended")
        return json.loads(line)

    def rest(self) -> list[Any]:
        """Return all that is left to hear, and let it go."""
        lines = [line for line in self._lines.read().split("\n")[:-1] if line]
        self._lines.close()
        os.waitpid(self.pid, 0)
        return [json.loads(line) for line in lines]

    def kill(self) -> list[Any]:
        """End it at once; return what it had said."""
        os.kill(self.pid, signal.SIGKILL)
        return self.rest()


def once(work: Work, folder: Path) -> Any:
    """Return the one thing that a child says."""
    child = Child(work, folder, "", 0)
    said = child.hear()
    child.rest()
    return said
