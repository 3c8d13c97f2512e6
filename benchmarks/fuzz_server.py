"""Requests that schemathesis makes up from our own OpenAPI document: none may be answered with a 5xx, or not at all.

    PYTHONPATH=src python benchmarks/fuzz_server.py --model smollm2 --cases 2000

Half of them follow the document, with a model and tokens that are there; half break it. Few tokens are asked for.
"""

# ruff: noqa: T201 - it prints its findings
from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok

from tokenvm.bench.served_process import served_process

ANSWER_S = 30.0
VOCABULARY = 200
"""Token ids below it exist in every model."""

LOGPROBS = 20
"""So many a server gives unless told otherwise."""


@dataclass
class Tally:
    """Answers by status class and endpoint, and what should not have been."""

    statuses: Counter[str] = field(default_factory=Counter)
    by_path: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """How many requests were answered."""
        return self.statuses.total()

    @property
    def accepted(self) -> float:
        """The share of 2xx."""
        return self.statuses["2xx"] / max(1, self.cases)

    def enter(self, case: Case, status: int, text: str) -> None:
        """Count an answer."""
        kind = f"{status // 100}xx"
        self.statuses[kind] += 1
        self.by_path.setdefault(f"{case.method} {case.path}", Counter())[kind] += 1
        if status >= 500:
            self.wrong.append(f"{status} {case.method} {case.path} {case.body!r:.300}: {text:.300}")


def fuzz(url: str, cases: int) -> Tally:
    """Send about so many requests, spread over all endpoints; the same ones each time."""
    tally = Tally()
    with httpx.Client(base_url=url, timeout=ANSWER_S) as client:
        schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        found = [one.ok() for one in schema.get_all_operations() if isinstance(one, Ok)]
        bodies = [operation for operation in found if operation.body]
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            for operation in found:
                few = operation not in bodies
                if few and mode is GenerationMode.NEGATIVE:
                    continue
                count = 3 if few else max(1, cases // (2 * len(bodies)))
                change = _sensible if mode is GenerationMode.POSITIVE else _brief
                _send_all(client, operation.as_strategy(mode), count, tally, change)
        client.get("/ready").raise_for_status()
    return tally


def _send_all(
    client: httpx.Client, cases: Any, count: int, tally: Tally, change: Callable[[Any], Any]
) -> None:
    @given(cases)
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Case) -> None:
        case.body = change(case.body)
        sent = case.as_transport_kwargs(base_url=str(client.base_url))
        body = {key: sent[key] for key in ("json", "data", "files") if sent.get(key) is not None}
        if isinstance(body.get("data"), bytes):
            body["content"] = body.pop("data")
        answer = client.request(
            sent["method"],
            sent["url"],
            headers=dict(sent.get("headers") or {}),
            params=sent.get("params"),
            **body,
        )
        tally.enter(case, answer.status_code, answer.text)

    send()


def _brief(body: Any) -> Any:
    """Return a body that asks for few tokens: what is tried is what the server reads, not what the model says."""
    if not isinstance(body, dict) or not {"messages", "prompt"} & body.keys():
        return body
    brief = dict(body)
    if "messages" in body and brief.get("max_completion_tokens") is None and brief.get("max_tokens") is None:
        brief["max_completion_tokens"] = 4
    for name, most in (("max_tokens", 4), ("max_completion_tokens", 4), ("n", 2), ("best_of", 2)):
        if isinstance(brief.get(name), int) and brief[name] > most:
            brief[name] = most
    return brief


def _sensible(body: Any) -> Any:
    """Return a body that goes beyond what a schema can say: a model that is served, tokens that it has."""
    if not isinstance(body, dict):
        return body
    given = _brief(body)
    if "model" in given:
        given["model"] = "default"
    for name in ("prompt", "tokens", "stop_token_ids"):
        if given.get(name):
            given[name] = _known(given[name])
    for name in ("logprobs", "prompt_logprobs"):
        if isinstance(given.get(name), int) and not isinstance(given[name], bool):
            given[name] %= LOGPROBS + 1
    if given.get("logit_bias"):
        given["logit_bias"] = {
            str(sum(map(ord, token)) % VOCABULARY): bias for token, bias in given["logit_bias"].items()
        }
    for name in (
        *(() if given.get("stream") else ("stream_options",)),
        *(() if given.get("logprobs") else ("top_logprobs",)),
        *(("add_generation_prompt",) if given.get("continue_final_message") else ()),
        *(("best_of",) if "best_of" in given else ()),
        *(("prompt",) if "messages" in given else ()),
        "min_tokens",
        "truncate_prompt_tokens",
    ):
        given.pop(name, None)
    if "messages" in given:
        given.pop("max_tokens", None)
    return given


def _known(tokens: Any) -> Any:
    """Return token ids, or lists of them, within the vocabulary; texts stay."""
    if isinstance(tokens, list):
        return [_known(token) for token in tokens]
    return tokens % VOCABULARY if isinstance(tokens, int) and not isinstance(tokens, bool) else tokens


def main() -> None:
    """Fuzz a server of our own, print what came back, and fail if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--cases", type=int, default=2000)
    options = parser.parse_args()
    limits = ["--max-model-len=64", "--max-n=4", "--kv-limit=64MB", "--no-log-requests"]
    with served_process(options.model, limits, errors=None) as served:
        tally = fuzz(served.url, options.cases)
    for path, statuses in sorted(tally.by_path.items()):
        print(f"{path:36} {dict(statuses)}")
    for text in tally.wrong:
        print(text)
    figures = {"cases": tally.cases, "accepted": round(tally.accepted, 3), "wrong": len(tally.wrong)}
    print(json.dumps({**figures, "statuses": dict(tally.statuses)}))
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
