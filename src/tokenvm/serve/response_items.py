"""The items of a response's output, and the events that tell how they grow."""

from __future__ import annotations

import uuid
from typing import Any

from tokenvm.serve.call_text import Argued, Called, Piece, Said
from tokenvm.serve.calling import Calling

Event = tuple[str, dict[str, Any]]
"""A kind of event and its fields."""


class Items:
    """Turns text as it comes into messages and calls, one after the other. `done` are those that are over."""

    def __init__(self, calling: Calling) -> None:
        self.done: list[dict[str, Any]] = []
        self._heard = calling.listen()
        self._open: dict[str, Any] | None = None

    def push(self, text: str) -> list[Event]:
        """Take in text; return what it brings."""
        if self._heard is not None:
            return self._take(self._heard.push(text))
        return self._take([Said(text)] if text else [])

    def finish(self, *, whole: bool) -> list[Event]:
        """Hear that nothing more comes, and whether that was meant so."""
        events = self._take(self._heard.finish()) if self._heard is not None else []
        if not (self.done or self._open):
            events += self._begin(_message())
        return events + self._end("completed" if whole else "incomplete")

    def _take(self, pieces: list[Piece]) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            if isinstance(piece, Called):
                events += self._end("completed") + self._begin(_call(piece.name))
            elif isinstance(piece, Argued):
                events += self._grow("response.function_call_arguments.delta", piece.text)
            else:
                if self._open is None or self._open["type"] != "message":
                    events += self._end("completed") + self._begin(_message())
                events += self._grow("response.output_text.delta", piece.text)
        return events

    def _begin(self, item: dict[str, Any]) -> list[Event]:
        self._open = item
        shown = {**item, "content": []} if item["type"] == "message" else dict(item)
        events: list[Event] = [
            ("response.output_item.added", {"output_index": len(self.done), "item": shown})
        ]
        if item["type"] == "message":
            events.append(("response.content_part.added", {**self._place(), "part": _part("")}))
        return events

    def _grow(self, kind: str, text: str) -> list[Event]:
        assert self._open is not None
        if self._open["type"] == "message":
            self._open["content"][0]["text"] += text
            return [(kind, {**self._place(), "delta": text, "logprobs": []})]
        self._open["arguments"] += text
        return [(kind, {**self._place(), "delta": text})]

    def _end(self, status: str) -> list[Event]:
        if self._open is None:
            return []
        item, place = self._open, self._place()
        item["status"] = status
        events: list[Event] = []
        if item["type"] == "message":
            (part,) = item["content"]
            events.append(("response.output_text.done", {**place, "text": part["text"], "logprobs": []}))
            events.append(("response.content_part.done", {**place, "part": part}))
        else:
            told = {**place, "arguments": item["arguments"], "name": item["name"]}
            events.append(("response.function_call_arguments.done", told))
        events.append(("response.output_item.done", {"output_index": len(self.done), "item": item}))
        self.done.append(item)
        self._open = None
        return events

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        place = {"item_id": self._open["id"], "output_index": len(self.done)}
        return {**place, "content_index": 0} if self._open["type"] == "message" else place


def _message() -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "status": "in_progress",
        "content": [_part("")],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call(name: str) -> dict[str, Any]:
    return {
        "id": f"fc_{uuid.uuid4().hex}",
        "type": "function_call",
        "status": "in_progress",
        "call_id": f"call_{uuid.uuid4().hex[:24]}",
        "name": name,
        "arguments": "",
    }
