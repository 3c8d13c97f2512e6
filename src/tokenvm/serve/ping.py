"""Asking a running server something."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx

from tokenvm.errors import RequestError

PAUSE_S: Final = 1.0
ANSWER_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, as a conversation if `chat`."""

    text: str
    chat: bool = False
    model: str = "default"
    max_tokens: int = 100
    n: int = 1
    temperature: float = 0.0

    @property
    def path(self) -> str:
        """Where to ask it."""
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self) -> dict[str, Any]:
        """Return the request."""
        said: dict[str, Any] = {"prompt": self.text}
        if self.chat:
            said = {"messages": [{"role": "user", "content": self.text}]}
        numbers = {"max_tokens": self.max_tokens, "n": self.n, "temperature": self.temperature}
        return {"model": self.model, **said, **numbers}


def ask_server(
    address: str, question: Question, *, key: str = "", hide: bool = False, retries: int = 0
) -> Iterator[str]:
    """Yield the answers, then what they took. Raises RequestError where there is no server or it refuses."""
    answer = _post(address, question, {"Authorization": f"Bearer {key}"} if key else {}, retries)
    for choice in () if hide else answer["choices"]:
        yield choice["message"]["content"] if question.chat else choice["text"]
    usage = answer["usage"]
    yield f"({usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out)"


def _post(address: str, question: Question, headers: dict[str, str], retries: int) -> dict[str, Any]:
    for left in range(retries, -1, -1):
        try:
            response = httpx.post(
                f"{address}{question.path}", json=question.body(), headers=headers, timeout=ANSWER_S
            )
        except httpx.HTTPError as error:
            if not left:
                raise RequestError(
                    f"{address} does not answer ({error}): start a server with `tokenvm serve`"
                ) from error
        else:
            if response.status_code == 200 or not left:
                return _read(response)
        time.sleep(PAUSE_S)
    raise AssertionError("the last attempt returns or raises")


def _read(response: httpx.Response) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = response.json()
    except json.JSONDecodeError:
        answer = {"error": {"message": f"{response.text[:200]!r} is no answer of a `tokenvm serve`"}}
    if response.status_code != 200 or "choices" not in answer:
        raise RequestError(str(answer.get("error", {}).get("message", "the answer has no choices")))
    return answer
