"""`POST /v1/responses`: a conversation in OpenAI's newer words. Nothing is kept between two of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tokenvm.outputs import CompletionOutput, RequestOutput
from tokenvm.serve import chat
from tokenvm.serve.answers import Answer
from tokenvm.serve.calling import Calling
from tokenvm.serve.documented import DOCUMENTED
from tokenvm.serve.generation import Asked, complete, stream
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.response_input import chat_body_of
from tokenvm.serve.response_items import Items
from tokenvm.serve.schema_responses import ResponseBody
from tokenvm.serve.state import ServeState, state_of
from tokenvm.serve.usage import Usage
from tokenvm.serve.wire import EventStream, Json, encode, while_connected

_ECHOED: Final = ("instructions", "max_output_tokens", "temperature", "top_p", "metadata", "user")
"""Fields that the answer repeats."""


def router() -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.post("/v1/responses", summary="Answer a conversation", responses={**DOCUMENTED})
    async def create_response(body: ResponseBody, request: Request) -> Response:
        state = state_of(request)
        reply = await reply_to(body, state)
        if body.stream:
            return EventStream(_events(state, reply), state.settings.request_timeout_s)
        (output,) = await while_connected(request.receive, complete(state, [reply.asked]))
        return Json(reply.told(output))

    return routes


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: what the engine is asked for it, and how it is told."""

    body: ResponseBody
    asked: Asked
    calling: Calling
    answer: Answer

    def told(self, output: RequestOutput) -> dict[str, Any]:
        """Return the whole answer."""
        (one,) = output.outputs
        items = Items(self.calling)
        items.push(one.text)
        items.finish(whole=one.finish_reason == "stop")
        return self.as_dict(items.done, one, Usage.of([output]))

    def as_dict(
        self, output: list[dict[str, Any]], one: CompletionOutput | None, usage: Usage | None
    ) -> dict[str, Any]:
        """Return the answer with what has come of it; `one` is how it ended, None while it goes on."""
        given = self.body.model_dump(by_alias=True, exclude_none=True)
        status, why = _status(one)
        return {
            "id": self.answer.id,
            "object": "response",
            "created_at": self.answer.created,
            "model": self.answer.model,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": why} if why else None,
            "output": output,
            "parallel_tool_calls": self.body.parallel_tool_calls is not False,
            "tools": given.get("tools", []),
            "tool_choice": given.get("tool_choice", "auto"),
            "text": {"format": {"type": "text"}, **given.get("text", {})},
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            **{name: given.get(name) for name in _ECHOED},
        }


async def reply_to(body: ResponseBody, state: ServeState) -> Reply:
    """Read a body. Raises Refusal or RequestError for what is not possible."""
    talk = chat_body_of(body)
    asked, calling = await chat.ask(talk, state)
    return Reply(body, asked, calling, Answer.of(state, talk, "resp"))


async def _events(state: ServeState, reply: Reply) -> AsyncGenerator[bytes, None]:
    """Yield the events of an answer as it comes; each has a number."""
    count = 0

    def event(kind: str, fields: dict[str, Any]) -> bytes:
        nonlocal count
        data = encode({"type": kind, "sequence_number": count, **fields})
        count += 1
        return f"event: {kind}\ndata: ".encode() + data + b"\n\n"

    usage, items, one = Usage(), Items(reply.calling), CompletionOutput(0)
    begun = False
    try:
        async with aclosing(stream(state, [reply.asked])) as outputs:
            async for index, output in outputs:
                if not begun:
                    begun, empty = True, {"response": reply.as_dict([], None, None)}
                    yield event("response.created", empty) + event("response.in_progress", empty)
                usage.add(index, output)
                (one,) = output.outputs
                found = items.push(one.text)
                if one.finish_reason is not None:
                    found += items.finish(whole=one.finish_reason == "stop")
                if found:
                    yield b"".join(event(kind, fields) for kind, fields in found)
    except Refusal as refusal:
        if not begun:
            raise
        failed = {**reply.as_dict(items.done, None, usage), "status": "failed"}
        failed["error"] = {"code": "server_error", "message": refusal.message}
        yield event("response.failed", {"response": failed})
        return
    status, _ = _status(one)
    yield event(f"response.{status}", {"response": reply.as_dict(items.done, one, usage)})


def _status(one: CompletionOutput | None) -> tuple[str, str]:
    """Return a status and, where an answer is not whole, why."""
    if one is None:
        return "in_progress", ""
    if one.finish_reason == "stop":
        return "completed", ""
    return "incomplete", "max_output_tokens" if one.finish_reason == "length" else "content_filter"


def _usage(usage: Usage) -> dict[str, Any]:
    told = usage.as_dict()
    return {
        "input_tokens": told["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": told["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": told["total_tokens"],
    }
