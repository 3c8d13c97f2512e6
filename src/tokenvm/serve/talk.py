"""Conversations as chat templates expect them: calls, their results, and tools for templates that know none."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Final

from tokenvm.serve.schema_text import ChatBody, Message, TokenizeBody
from tokenvm.serve.schema_tools import ToolCall
from tokenvm.tokenizer import Tokenizer

_TEACHING: Final = """You may call functions. These are described here, each by a JSON Schema of its arguments:
<tools>
{tools}
</tools>
To call one, write
<tool_call>
{{"name": <its name>, "arguments": <a JSON object>}}
</tool_call>
and nothing behind it. The answer comes in <tool_response></tool_response>."""
"""What a model is told whose template does not know of tools; the words are those of Hermes and Qwen."""


def talk_of(
    body: ChatBody | TokenizeBody, tokenizer: Tokenizer
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a body's messages, and the names that a template finds beside them.

    A template that knows no tools gets them as text: in the system message, calls and their results in others.
    """
    messages = list(body.messages or ())
    tools = [one.model_dump(exclude_none=True) for one in body.tools or ()]
    if isinstance(body, ChatBody) and body.tool_choice == "none":
        tools = []
    if knows_tools(tokenizer):
        return [_plain(one) for one in messages], {"tools": tools} if tools else {}
    told = [_told(one) for one in messages]
    return (_taught(told, tools) if tools else told), {}


def knows_tools(tokenizer: Tokenizer) -> bool:
    """Whether the model's template shows tools."""
    return "tools" in tokenizer.chat_template


def _plain(message: Message) -> dict[str, Any]:
    """Return a message as templates expect it; few know the role `developer`, which means `system`."""
    plain = message.model_dump(exclude_none=True)
    plain["role"] = "system" if message.role == "developer" else message.role
    plain["content"] = _text(message)
    if message.tool_calls:
        plain["tool_calls"] = [
            {"id": one.id, "type": "function", "function": _call(one)} for one in message.tool_calls
        ]
    return plain


def _told(message: Message) -> dict[str, Any]:
    """Return a message with calls and results as text."""
    plain = _plain(message)
    plain.pop("tool_calls", None)
    plain.pop("tool_call_id", None)
    if message.role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{_text(message)}\n</tool_response>"}
    for one in message.tool_calls or ():
        call = f"<tool_call>\n{json.dumps(_call(one), ensure_ascii=False)}\n</tool_call>"
        plain["content"] = f"{plain['content']}\n{call}" if plain["content"] else call
    return plain


def _taught(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    listed = "\n".join(json.dumps(one["function"], ensure_ascii=False) for one in tools)
    teaching = _TEACHING.format(tools=listed)
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{teaching}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": teaching}, *messages]


def _call(call: ToolCall) -> dict[str, Any]:
    """Return a call as templates expect it: arguments that are no JSON, as a model may have written them, as text."""
    arguments: Any = call.function.arguments
    with suppress(ValueError, RecursionError):
        arguments = json.loads(arguments or "{}")
    return {"name": call.function.name, "arguments": arguments}


def _text(message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "".join(part.text for part in message.content)
