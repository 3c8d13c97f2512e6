"""The lines of a batch: what is asked in each, and how an answer is written down."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

MAX_LINES: Final = 50_000
MAX_FAULTS: Final = 100
"""So many faults of a file are told."""


@dataclass(frozen=True, slots=True)
class Line:
    """One request: the `index`-th line, its name and its body."""

    index: int
    custom_id: str
    body: dict[str, Any]


def lines_of(path: Path) -> Iterator[Line]:
    """Yield the requests of a file that was found without fault, one at a time; empty lines are passed over."""
    with path.open("rb") as file:
        for index, text in enumerate(file):
            if text.strip():
                entry = json.loads(text)
                yield Line(index, entry["custom_id"], entry["body"])


def check_lines(path: Path, endpoint: str) -> tuple[int, list[dict[str, Any]]]:
    """Return how many requests a file has, and its faults as OpenAI tells them, at most MAX_FAULTS."""
    seen: set[str] = set()
    faults: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for index, text in enumerate(file):
            if not text.strip():
                continue
            if fault := _fault(text, endpoint, seen):
                param, message = fault
                faults.append(
                    {"code": "invalid_request", "line": index + 1, "message": message, "param": param}
                )
            if len(faults) >= MAX_FAULTS:
                break
    if not seen and not faults:
        faults = [{"code": "empty_file", "line": None, "message": "the file has no requests", "param": None}]
    if len(seen) > MAX_LINES:
        text_ = f"the file has more than {MAX_LINES} requests: send several"
        faults.append({"code": "too_many_requests", "line": None, "message": text_, "param": None})
    return len(seen), faults


def _fault(text: bytes, endpoint: str, seen: set[str]) -> tuple[str | None, str] | None:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        return None, f"this line is not JSON: {error}"
    if not isinstance(entry, dict):
        return (
            None,
            'a line is an object like {"custom_id": ..., "method": "POST", "url": ..., "body": {...}}',
        )
    name = entry.get("custom_id")
    if not isinstance(name, str) or not name or name in seen:
        return "custom_id", "custom_id is missing or used before: give each line a text of its own"
    seen.add(name)
    if entry.get("method") != "POST":
        return "method", "method must be POST"
    if entry.get("url") != endpoint:
        return "url", f"url must be the batch's endpoint, {endpoint}"
    if not isinstance(entry.get("body"), dict):
        return "body", "body must be an object"
    return None


def written(line: Line, status: int, body: dict[str, Any]) -> str:
    """Return a line of an output or error file for an answer of some HTTP status."""
    response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
    return _entry(line.custom_id, response, None)


def not_run(line: Line, code: str, message: str) -> str:
    """Return a line of an error file for a request that was not run."""
    return _entry(line.custom_id, None, {"code": code, "message": message})


def _entry(custom_id: str, response: dict[str, Any] | None, error: dict[str, Any] | None) -> str:
    return json.dumps(
        {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }
    )
