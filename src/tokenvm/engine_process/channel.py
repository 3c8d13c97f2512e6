"""The engine's end of the connection: reads and writes that never make a step wait."""

from __future__ import annotations

import select
import socket
from typing import Final

from tokenvm.engine_process.messages import (
    HEADER_BYTES,
    MAX_TO_ENGINE_BYTES,
    ToFront,
    frame,
    payload_bytes,
)

READ_BYTES: Final = 1 << 16
"""The most that is read between two steps: some twenty thousand tokens of prompts."""

MAX_UNSENT_BYTES: Final = 64 << 20
"""With more than this unread by the front process, the engine waits for it."""


class Hangup(Exception):  # noqa: N818 - an end, not an error
    """The front process has gone."""


class Channel:
    """Whole messages over a stream socket, which it owns. One thread uses it."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._arrived = bytearray()
        self._unsent = bytearray()

    def receive(self, wait_s: float) -> list[bytes]:
        """Return the messages that are there, waiting up to `wait_s` for a first byte; what was sent moves meanwhile.

        Raises Hangup once the other end is closed. ValueError for a message that is too long.
        """
        wanted = select.POLLIN | (select.POLLOUT if self._unsent else 0)
        for _ in self._ready(wanted, wait_s):
            self.flush()
            self._read()
        return self._whole()

    def send(self, message: ToFront) -> None:
        """Queue a message; `flush` or `receive` moves it on."""
        self._unsent += frame(message)

    def flush(self, wait_s: float = 0.0) -> None:
        """Write what the socket takes now; wait up to `wait_s` for it to take all. Raises Hangup as `receive` does."""
        while self._unsent:
            try:
                with memoryview(self._unsent) as unsent:
                    sent = self._connection.send(unsent[: 1 << 20])
                del self._unsent[:sent]
            except BlockingIOError:
                if not wait_s or not self._ready(select.POLLOUT, wait_s):
                    return
            except OSError as error:
                raise Hangup from error

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the socket has not taken yet."""
        return len(self._unsent)

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._connection.close()

    def _ready(self, wanted: int, wait_s: float) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._connection, wanted)
        return poll.poll(wait_s * 1000)

    def _read(self) -> None:
        try:
            read = self._connection.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise Hangup from error
        if not read:
            raise Hangup
        self._arrived += read

    def _whole(self) -> list[bytes]:
        messages: list[bytes] = []
        begin = 0
        while len(self._arrived) >= begin + HEADER_BYTES:
            length = payload_bytes(memoryview(self._arrived)[begin:])
            if length > MAX_TO_ENGINE_BYTES:
                raise ValueError(f"a message of {length} bytes is longer than {MAX_TO_ENGINE_BYTES}")
            end = begin + HEADER_BYTES + length
            if len(self._arrived) < end:
                break
            messages.append(bytes(self._arrived[begin + HEADER_BYTES : end]))
            begin = end
        del self._arrived[:begin]
        return messages
