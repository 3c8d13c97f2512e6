"""Tools of one conversation: what is asked of the answer's shape, and the calls that are found in it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Final

from tokenvm.serve.call_text import Argued, Called, CallStyle, CallText, Piece, Said
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.schema_text import ChatBody
from tokenvm.serve.schema_tools import NamedChoice
from tokenvm.serve.shape import calls_of, shape_of
from tokenvm.serve.talk import knows_tools
from tokenvm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Calling:
    """How calls stand in answers to one body. `style` is None where there are none; then text is text."""

    style: CallStyle | None
    names: tuple[str, ...] = ()

    def listen(self) -> CallText | None:
        """Begin to read one answer."""
        return None if self.style is None else CallText(self.style, self.names)


NO_CALLS: Final = Calling(None)


def calling_of(body: ChatBody, tokenizer: Tokenizer) -> Calling:
    """Return how calls stand in the answers to a body. Raises Refusal for what cannot be."""
    names = tuple(one.function.name for one in body.tools or ())
    if len(set(names)) < len(names):
        raise Refusal("two tools have the same name: give each one of its own", param="tools")
    choice = body.tool_choice
    if not names:
        if choice not in (None, "none", "auto"):
            raise Refusal(
                "tool_choice demands a call and there are no tools: send tools", param="tool_choice"
            )
        return NO_CALLS
    if choice == "none":
        return NO_CALLS
    if isinstance(choice, NamedChoice):
        if choice.function.name not in names:
            text = f"tool_choice names {choice.function.name!r}, which is not among tools: send it there too"
            raise Refusal(text, param="tool_choice")
        return Calling(CallStyle.LISTED, (choice.function.name,))
    if choice == "required":
        return Calling(CallStyle.LISTED, names)
    return Calling(_style_of(tokenizer), names)


def params_of_calls(body: ChatBody, calling: Calling) -> dict[str, Any]:
    """Return the sampling parameters that calls need. Raises Refusal for a shape that would leave no room for them."""
    if calling.style is None:
        return {}
    if shape_of(body) is not None:
        text = "response_format and structured_outputs leave no room for calls: send tool_choice none, or no tools"
        raise Refusal(text, param="tools")
    if calling.style is not CallStyle.LISTED:
        return {"skip_special_tokens": False}  # some models begin a call with one
    named = isinstance(body.tool_choice, NamedChoice)
    most = 1 if named or body.parallel_tool_calls is False else None
    tools = [one.function.model_dump() for one in body.tools or () if one.function.name in calling.names]
    return {"structured_outputs": calls_of(tools, most)}


def _style_of(tokenizer: Tokenizer) -> CallStyle:
    """Return how a model writes calls, by its template; one that knows no tools is told to write tags."""
    source = tokenizer.chat_template
    if not knows_tools(tokenizer) or ("<tool_call>" in source and "<function=" not in source):
        return CallStyle.TAGGED
    if "<|python_tag|>" in source or '"parameters"' in source:
        return CallStyle.BARE
    raise Refusal(
        "how this model writes calls is not known: demand one with tool_choice required or a function's name",
        param="tool_choice",
    )


def deltas(pieces: list[Piece]) -> list[dict[str, Any]]:
    """Return what pieces are in a stream's choices."""
    return [_delta(piece) for piece in pieces]


def message_of(pieces: list[Piece]) -> dict[str, Any]:
    """Return a whole message with its calls."""
    text = "".join(piece.text for piece in pieces if isinstance(piece, Said))
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, Called):
            calls.append(_opened(piece))
        elif isinstance(piece, Argued):
            calls[piece.index]["function"]["arguments"] += piece.text
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message |= {"content": text or None, "tool_calls": calls}
    return message


def reason_of(reason: str | None, calls: int) -> str | None:
    """Return why an answer ended, which calls change."""
    return "tool_calls" if reason == "stop" and calls else reason


def _delta(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, Said):
        return {"content": piece.text}
    if isinstance(piece, Called):
        return {"tool_calls": [{"index": piece.index, **_opened(piece)}]}
    return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}


def _opened(piece: Called) -> dict[str, Any]:
    function = {"name": piece.name, "arguments": ""}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
