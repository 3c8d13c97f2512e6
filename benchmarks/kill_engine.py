"""Kill -9 of the engine under load, again and again: every client must hear of it, and the next request must work.

    PYTHONPATH=src python benchmarks/kill_engine.py --model smollm2 --rounds 10

Prints, for each round, the longest that a client waited between the kill and its answer or error, and how long it took
until a request worked again.
"""

# ruff: noqa: T201 - it prints its findings
from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from typing import Any

import httpx

from tokenvm.bench.served_process import ServedProcess, served_process

ANSWER_S = 120.0
BOUND_S = 5.0
LONG = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True}


async def ask(client: httpx.AsyncClient, streams: bool) -> tuple[str, float]:
    """Ask for something long; return how it ended and when."""
    answer = await client.post("/v1/completions", json=LONG | {"stream": streams})
    failed = answer.status_code != 200 or '"error"' in answer.text
    return ("error" if failed else "answer"), time.monotonic()


async def play(served: ServedProcess, clients: int) -> dict[str, Any]:
    """One round: load, kill, answers, and the next request."""
    async with httpx.AsyncClient(base_url=served.url, timeout=ANSWER_S) as client:
        tasks = [asyncio.create_task(ask(client, at % 2 == 0)) for at in range(clients)]
        while (await client.get("/load")).json()["server_load"] < clients:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        (pid,) = served.engine_pids
        killed_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        ended = await asyncio.gather(*tasks)
        works_s = await works(client) - killed_s
    longest_s = max(at for _, at in ended) - killed_s
    return {
        "ends": dict(Counter(kind for kind, _ in ended)),
        "longest_s": round(longest_s, 3),
        "works_s": round(works_s, 2),
    }


async def works(client: httpx.AsyncClient) -> float:
    """Ask until there is an answer, as OpenAI's client does; return when there was one."""
    for _ in range(100):
        answer = await client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 2})
        if answer.status_code == 200:
            return time.monotonic()
        await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
    raise SystemExit("no request works any more")


def main() -> None:
    """Play all rounds; fail if a client waited too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    with served_process(options.model, ["--kv-limit=128MB", "--no-log-requests"]) as served:
        rounds = [asyncio.run(_shown(served, options.clients, at)) for at in range(options.rounds)]
    late = [one for one in rounds if one["longest_s"] > BOUND_S]
    print(json.dumps({"rounds": rounds, "late": len(late)}))
    sys.exit(1 if late else 0)


async def _shown(served: ServedProcess, clients: int, at: int) -> dict[str, Any]:
    found = await play(served, clients)
    print(f"round {at}: {found}")
    return found


if __name__ == "__main__":
    main()
