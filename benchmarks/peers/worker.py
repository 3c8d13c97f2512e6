"""A peer in a process of its own, with the interpreter it was installed for."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from peers.workloads import Prompts

HERE = Path(__file__).parent


class PeerError(Exception):
    """A peer cannot be measured; the text says why."""


class Worker:
    """One engine at one number of threads, with so many bytes of KV memory, 0 for enough.

    It answers one job at a time and idles between them.
    """

    def __init__(
        self, peer: str, python: str, model: Path, threads: int, log: Path, kv_bytes: int = 0
    ) -> None:
        self.peer = peer
        self.threads = threads
        self.settings: dict[str, Any] = {}
        command = [python, str(HERE / f"drive_{peer}.py"), str(model), "--threads", str(threads)]
        command += ["--kv-bytes", str(kv_bytes)] if kv_bytes else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )

    def start(self) -> None:
        """Wait until it is ready; PeerError where it cannot start."""
        self.settings = self._answer()["ready"]

    def seconds(self, prompts: Prompts, n_out: int) -> float:
        """Do a job and return how long it took; PeerError where it cannot."""
        return float(self._ask(prompts, n_out)["seconds"])

    def tokens(self, prompts: Prompts, n_out: int) -> list[list[int]]:
        """Do a job and return its tokens; PeerError where it cannot."""
        tokens: list[list[int]] = self._ask(prompts, n_out)["tokens"]
        return tokens

    def complete(self, prompt: list[int], n_out: int) -> tuple[list[int], float]:
        """Complete one prompt; return its tokens and the seconds it took; PeerError where it cannot."""
        answer = self._ask([prompt], n_out)
        return answer["tokens"][0], float(answer["seconds"])

    def close(self) -> None:
        """End the process."""
        try:
            self._process.communicate(timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.communicate()

    def _ask(self, prompts: Prompts, n_out: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"prompts": prompts, "n_out": n_out}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise PeerError(self._why()) from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(self._why())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _why(self) -> str:
        self._process.wait()
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"it ended with exit code {self._process.returncode}"
