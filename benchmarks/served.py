"""What HTTP costs: the same work by `LLM.generate` and through a server, in turn; and the time to a first token.

    PYTHONPATH=src python benchmarks/served.py --rounds 3

Token ids go in and come out; the tokens of both ways must agree. The client is on the same machine and writes plain
HTTP over sockets, so that little of its own work is measured; what it does take counts against the server.
"""

# ruff: noqa: T201 - it prints its findings
from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from output_options import add_output_options

from tokenvm.bench.figures import paired_ratios, spread
from tokenvm.bench.report import Grid, Report, finish, machine
from tokenvm.bench.served_process import served_process
from tokenvm.bench.subject import Subject, open_subject, turn
from tokenvm.config import MemoryConfig
from tokenvm.llm import LLM
from tokenvm.schedule.sampling_params import SamplingParams

OFFLINE, WHOLE, STREAMED = "LLM.generate", "server, whole", "server, streamed"
WAYS = (OFFLINE, WHOLE, STREAMED)


@dataclass
class Found:
    """What was measured, round by round: seconds of each way, and seconds to a first token."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    first_s: dict[str, list[float]] = field(default_factory=lambda: {OFFLINE: [], STREAMED: []})


@dataclass
class Answered:
    """One answer: its tokens, and when the first and the last of it came."""

    token_ids: list[int]
    first_s: float


async def post(url: str, body: dict[str, Any]) -> Answered:
    """Send one request over a connection of its own and read its answer, whole or streamed."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 24)
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"the server refuses: {(await reader.read()).decode()}")
    await reader.readuntil(b"\r\n\r\n")
    received = await reader.readuntil(b"\n") if body["stream"] else b""
    first_s = time.monotonic()
    received += await reader.read()
    writer.close()
    return Answered(_tokens(received, body["stream"]), first_s)


def _tokens(received: bytes, streams: bool) -> list[int]:
    """Return the token ids of an answer's body."""
    if not streams:
        return list(json.loads(received)["choices"][0]["token_ids"])
    events = [line[6:] for line in received.split(b"\n") if line.startswith(b"data: {")]
    return [token for event in events for token in json.loads(event)["choices"][0]["token_ids"]]


def body_of(ids: list[int], tokens: int, streams: bool) -> dict[str, Any]:
    """Return the request for one prompt."""
    return {
        "prompt": ids,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": streams,
    }


def through_server(url: str, prompts: list[list[int]], tokens: int, streams: bool) -> list[list[int]]:
    """Ask for all at once and return their tokens."""

    async def ask() -> list[Answered]:
        return await asyncio.gather(*(post(url, body_of(ids, tokens, streams)) for ids in prompts))

    return [answer.token_ids for answer in asyncio.run(ask())]


def offline(llm: LLM, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """The same without a server."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def first_token_s(llm: LLM, url: str, ids: list[int], way: str) -> float:
    """Return the seconds from asking one client's prompt to its first token."""
    began_s = time.monotonic()
    if way == OFFLINE:
        params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
        next(chunks := llm.stream({"prompt_token_ids": ids}, params))
        first_s = time.monotonic()
        chunks.close()
    else:
        first_s = asyncio.run(post(url, body_of(ids, 2, True))).first_s
    return first_s - began_s


def play(
    llm: LLM, url: str, subject: Subject, options: argparse.Namespace, found: Found, number: int
) -> None:
    """One round of everything."""
    prompts = [subject.ids(options.prompt, options.requests * number + at) for at in range(options.requests)]
    said = {}
    for way in WAYS:
        with turn(options.lock):
            began_s = time.monotonic()
            if way == OFFLINE:
                said[way] = offline(llm, prompts, options.tokens)
            else:
                said[way] = through_server(url, prompts, options.tokens, way == STREAMED)
            found.seconds[way].append(time.monotonic() - began_s)
        print(f"round {number + 1}: {way}: {found.seconds[way][-1]:.2f} s", flush=True)
    if not said[OFFLINE] == said[WHOLE] == said[STREAMED]:
        raise SystemExit("the ways say different things")
    for at in range(options.firsts):
        ids = subject.ids(options.prompt, 10_000 + options.firsts * number + at)
        for way in found.first_s:
            with turn(options.lock):
                found.first_s[way].append(first_token_s(llm, url, ids, way))


def report(found: Found, options: argparse.Namespace) -> Report:
    """Put seconds, ratios and first tokens into tables."""
    made = options.requests * options.tokens
    ratios = {way: paired_ratios(found.seconds[OFFLINE], found.seconds[way]) for way in WAYS}
    grid = Grid(
        ("way", "seconds", "tokens a second", "of LLM.generate"),
        [
            [
                way,
                f"{spread(found.seconds[way]).mid:.2f}",
                f"{made / spread(found.seconds[way]).mid:.0f}",
                "{1:.3f} ({0:.3f} to {2:.3f})".format(*ratios[way]),
            ]
            for way in WAYS
        ],
    )
    firsts = {way: spread(times).mid * 1000 for way, times in found.first_s.items()}
    added_ms = firsts[STREAMED] - firsts[OFFLINE]
    note = (
        f"{options.requests} requests of {options.prompt} tokens in and {options.tokens} out, {options.rounds} "
        f"rounds in turn. First token of one client: {firsts[OFFLINE]:.1f} ms by LLM.stream, "
        f"{firsts[STREAMED]:.1f} ms through the server, {added_ms:+.1f} ms."
    )
    figures = {
        "bench": "served",
        "seconds": found.seconds,
        "ratios": ratios,
        "first_ms": firsts,
        "added_first_ms": added_ms,
        "machine": machine(),
    }
    return Report("served", figures, [grid], [note])


def main() -> None:
    """Measure all ways in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128, help="tokens in")
    parser.add_argument("--tokens", type=int, default=64, help="tokens out")
    parser.add_argument("--firsts", type=int, default=8, help="first tokens a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--kv-limit", default="512MB")
    add_output_options(parser, "served")
    options = parser.parse_args()
    memory = MemoryConfig(kv_limit=options.kv_limit, nvme_limit=0, host_memory=0)
    subject = open_subject(options.model, "auto", memory, options.threads)
    words = [
        f"--kv-limit={options.kv_limit}",
        "--nvme-limit=0",
        "--host-memory=0",
        "--no-enable-prefix-caching",
    ]
    words += ["--no-log-requests", *([f"--threads={options.threads}"] if options.threads else [])]
    llm = LLM(
        options.model, memory=memory, threads=options.threads, enable_prefix_caching=False, warm_up=True
    )
    found = Found()
    with llm, served_process(options.model, words, errors=None) as served:
        offline(llm, [subject.ids(8, 1)], 4)
        through_server(served.url, [subject.ids(8, 1)], 4, False)
        for number in range(options.rounds):
            play(llm, served.url, subject, options, found, number)
    finish(report(found, options), options.write, options.json, width=140)


if __name__ == "__main__":
    main()
