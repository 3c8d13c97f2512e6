"""From the body of `/v1/responses` to that of a conversation."""

from __future__ import annotations

from typing import Any

from tokenvm.serve.refusal import Refusal
from tokenvm.serve.schema_responses import FlatChoice, InputCall, InputMessage, InputPart, ResponseBody
from tokenvm.serve.schema_text import ChatBody

_SAME = (
    "model",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "seed",
    "top_k",
    "min_p",
    "repetition_penalty",
    "ignore_eos",
    "priority",
    "cache_salt",
)


def chat_body_of(body: ResponseBody) -> ChatBody:
    """Return the same as a conversation. Raises Refusal for what is not possible."""
    given: dict[str, Any] = {name: getattr(body, name) for name in _SAME if getattr(body, name) is not None}
    given["messages"] = _messages(body)
    if body.max_output_tokens is not None:
        given["max_completion_tokens"] = body.max_output_tokens
    if body.tools:
        functions = [one.model_dump(exclude={"type"}, exclude_none=True) for one in body.tools]
        given["tools"] = [{"type": "function", "function": one} for one in functions]
    if isinstance(body.tool_choice, FlatChoice):
        given["tool_choice"] = {"type": "function", "function": {"name": body.tool_choice.name}}
    elif body.tool_choice is not None:
        given["tool_choice"] = body.tool_choice
    if body.text is not None and body.text.format is not None:
        given["response_format"] = _format(body)
    return ChatBody.model_validate(given)


def _messages(body: ResponseBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for item in body.input:
        if isinstance(item, InputMessage):
            messages.append({"role": item.role, "content": _text(item.content)})
        elif isinstance(item, InputCall):
            if not (messages and messages[-1]["role"] == "assistant"):
                messages.append({"role": "assistant", "content": ""})
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            result = {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
            messages.append(result)
    return messages


def _text(content: str | list[InputPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _format(body: ResponseBody) -> dict[str, Any]:
    assert body.text is not None
    wanted = body.text.format
    assert wanted is not None
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    if wanted.schema_ is None or not wanted.name:
        text = (
            'text.format of type json_schema needs a name and a schema: send {"name": ..., "schema": {...}}'
        )
        raise Refusal(text, param="text.format")
    return {"type": "json_schema", "json_schema": {"name": wanted.name, "schema": wanted.schema_}}
