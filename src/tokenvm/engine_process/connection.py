"""The front process's end: starts the engine process, hears it, and sees its end at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from typing import Final, Self

from tokenvm.engine_process.messages import (
    HEADER_BYTES,
    MAX_TO_ENGINE_BYTES,
    Died,
    Leave,
    Loading,
    Ready,
    Start,
    StartFailed,
    ToEngine,
    ToFront,
    error_from,
    for_front,
    frame,
    payload_bytes,
)
from tokenvm.errors import EngineDeadError, RequestError
from tokenvm.models.progress import Progress, Report

LEAVE_S: Final = 10.0
"""How long an engine may take to leave: it finishes its step first."""

GONE_S: Final = 2.0
"""How long a process may outlive its end of the connection."""

TRACE_LINES: Final = 6

_SCRIPT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from tokenvm.engine_process.main import main; sys.exit(main(int(sys.argv[2])))"
)
"""A fresh interpreter that finds modules where this one does."""


class Connection:
    """Messages to and from an engine process, which it owns. Used from one event loop."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls) -> Self:
        """Start a process that waits for its first message.

        It is the leader of a session, so that a terminal's Ctrl-C does not reach it; it ends when this process does.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-c", _SCRIPT, json.dumps(sys.path), str(theirs.fileno())]
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,
                start_new_session=True,
            )
        return cls(process, *await asyncio.open_connection(sock=ours))

    @property
    def pid(self) -> int:
        """The engine process's id."""
        return self._process.pid

    async def start_engine(self, start: Start, progress: Report) -> Ready:
        """Have the engine made.

        Raises what made that impossible as the engine process raised it: ModelError, ConfigError, LimitTooSmall or
        StorageError; EngineDeadError where the process ended.
        """
        self.send(start)
        while True:
            match await self.receive():
                case Loading(message, done, total):
                    progress(Progress(message, done, total))
                case StartFailed(failure):
                    raise error_from(failure)
                case Ready() as ready:
                    return ready

    def send(self, message: ToEngine) -> None:
        """Queue a message; nothing happens once the engine has gone. Raises RequestError where it is too long."""
        framed = frame(message)
        if len(framed) > MAX_TO_ENGINE_BYTES:
            raise RequestError(
                f"this request has {len(framed)} bytes and at most {MAX_TO_ENGINE_BYTES} can be sent: shorten it"
            )
        if not self._writer.is_closing():
            self._writer.write(framed)

    async def drain(self) -> None:
        """Wait while much is unsent. An engine that has gone is not this call's to tell."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    async def receive(self) -> ToFront:
        """Wait for a message. Raises EngineDeadError, which says why, as soon as there can be none."""
        try:
            header = await self._reader.readexactly(HEADER_BYTES)
            message = for_front(await self._reader.readexactly(payload_bytes(header)))
        except (asyncio.IncompleteReadError, OSError):
            raise EngineDeadError(_obituary(await self._exit_code(GONE_S))) from None
        if isinstance(message, Died):
            await self._exit_code(GONE_S)
            raise EngineDeadError(_autopsy(message.trace))
        return message

    async def close(self, *, politely: bool = True) -> None:
        """End the process, by asking it first where `politely`, and wait until it is gone; idempotent."""
        if politely:
            with contextlib.suppress(OSError):
                self.send(Leave())
                await self.drain()
        await self._exit_code(LEAVE_S if politely else 0.0)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _exit_code(self, wait_s: float) -> int:
        """Return the exit code, negative for a signal; a process that does not end by itself is killed."""
        try:
            return await asyncio.to_thread(self._process.wait, wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)


def _obituary(code: int) -> str:
    """Say what is known of a process that ended without a word."""
    if code >= 0:
        return f"the engine process ended with exit code {code}: make another AsyncLLM"
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return (
            "the engine process was killed (SIGKILL), as the system does when memory runs out: "
            "look with `dmesg | tail`, lower kv_limit or host_memory, and make another AsyncLLM"
        )
    return f"the engine process was ended by {name}: make another AsyncLLM, and report this if nobody sent it"


def _autopsy(trace: str) -> str:
    lines = "\n".join(trace.rstrip().splitlines()[-TRACE_LINES:])
    return f"the engine process failed: make another AsyncLLM, and report this:\n{lines}"
