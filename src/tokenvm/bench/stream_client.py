"""A client of a server's streams that costs little: plain HTTP over sockets, each event timed as it arrives."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from tokenvm.errors import ConfigError

_LINE_BYTES: Final = 1 << 20
_PATH: Final = "/v1/completions"


@dataclass(slots=True)
class Heard:
    """One answer as it came. Times in seconds: to its first event, between events, and to its end."""

    first_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    tokens: list[int] = field(default_factory=list)
    problem: str = ""


def hear_all(url: str, bodies: Sequence[dict[str, Any]]) -> list[Heard]:
    """Send all bodies at once, each over a connection of its own, and hear their streams to the end.

    A body asks for a stream with return_token_ids. What a client was refused with is its `problem`.
    """
    _allow_files(2 * len(bodies) + 256)
    return asyncio.run(_hear_all(url, bodies))


async def _hear_all(url: str, bodies: Sequence[dict[str, Any]]) -> list[Heard]:
    return list(await asyncio.gather(*(_hear(url, json.dumps(body).encode()) for body in bodies)))


async def _hear(url: str, data: bytes) -> Heard:
    parts, heard, began_s = urlsplit(url), Heard(), time.monotonic()
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=_LINE_BYTES)
    except OSError as error:
        heard.problem = str(error)
        return heard
    head = f"POST {_PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    try:
        writer.write(head.encode() + data)
        await _events(reader, heard, began_s)
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        heard.problem = heard.problem or repr(error)
    finally:
        writer.close()
    return heard


async def _events(reader: asyncio.StreamReader, heard: Heard, began_s: float) -> None:
    status = await reader.readline()
    await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in status:
        heard.problem = (await reader.read()).decode(errors="replace")[-300:]
        return
    last_s = began_s
    events: list[bytes] = []
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            now_s = time.monotonic()
            if events:
                heard.gaps_s.append(now_s - last_s)
            else:
                heard.first_s = now_s - began_s
            last_s = now_s
            events.append(line[6:])
    heard.end_s = time.monotonic() - began_s
    for event in map(json.loads, events):
        if "error" in event:
            heard.problem = str(event["error"]["message"])
            return
        heard.tokens += [token for choice in event["choices"] for token in choice.get("token_ids") or ()]


def _allow_files(wanted: int) -> None:
    """Raise how many sockets this process may have open. Raises ConfigError where the system allows fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ConfigError(f"{wanted} open files are needed and {hard} allowed: type `ulimit -n {wanted}`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
