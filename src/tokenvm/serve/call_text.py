"""Function calls in a model's text, found while it is still coming. Pure: text in, pieces out."""

from __future__ import annotations

import enum
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

ARGUMENTS: Final = ("arguments", "parameters")
"""What models call them: Qwen and Hermes, Llama."""

_OPEN: Final = "<tool_call>"
_CLOSE: Final = "</tool_call>"
_PYTHON: Final = "<|python_tag|>"


class CallStyle(enum.Enum):
    """How calls stand in a text."""

    TAGGED = "tagged"
    """Qwen, Hermes: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, text and further ones around it."""
    BARE = "bare"
    """Llama 3: the whole text is `{"name": ..., "parameters": {...}}`, or several of them behind `;`."""
    LISTED = "listed"
    """A list of such objects: what an answer looks like in which calls were demanded."""


@dataclass(frozen=True, slots=True)
class Said:
    """Text that belongs to no call."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """The `index`-th call begins."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """More of the `index`-th call's arguments, JSON as text."""

    index: int
    text: str


Piece = Said | Called | Argued


class CallObject:
    """One JSON object as it comes, character by character; knows `name`, and where its arguments stand.

    Keys may come in any order. `done` once it is closed.
    """

    def __init__(self) -> None:
        self.text = ""
        self.name = ""
        self.done = False
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._begin = 0  # of the string that is open
        self._key = ""
        self._key_next = True
        self._from = self._to = -1  # of the arguments

    @property
    def arguments(self) -> str:
        """What has come of the arguments."""
        return "" if self._from < 0 else self.text[self._from : self._to if self._to >= 0 else None]

    def take(self, character: str) -> None:
        """Go on behind one more character."""
        at = len(self.text)
        self.text += character
        if self._in_string:
            self._inside(character, at)
        elif character == '"':
            self._in_string, self._begin = True, at
        elif character in "{[":
            self._depth += 1
            if self._depth == 2 and self._key in ARGUMENTS and self._from < 0:
                self._from = at
        elif character in "}]":
            self._depth -= 1
            if self._depth == 1 and self._from >= 0 and self._to < 0:
                self._to = at + 1
            self.done = self._depth <= 0
        elif character == "," and self._depth == 1:
            self._key, self._key_next = "", True

    def _inside(self, character: str, at: int) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
            if self._depth == 1:
                self._string(self.text[self._begin : at + 1])

    def _string(self, quoted: str) -> None:
        try:
            text = str(json.loads(quoted))
        except ValueError:
            text = ""
        if self._key_next:
            self._key, self._key_next = text, False
        elif self._key == "name":
            self.name = text


class CallText:
    """Takes a text as it comes and says what of it is text and what calls one of `names`.

    What looks like a call and is none, because it ends too early or names nobody, is text. An empty `names` allows any.
    """

    def __init__(self, style: CallStyle, names: Collection[str]) -> None:
        self._style = style
        self._names = frozenset(names)
        self._held = ""  # text that may yet turn out to begin a call
        self._object: CallObject | None = None
        self._told = 0  # characters of its arguments
        self._began = False  # this object has been told of
        self._plain = False  # a bare text that is no call
        self.calls = 0

    def push(self, text: str) -> list[Piece]:
        """Return what these characters bring."""
        pieces: list[Piece] = []
        for character in text:
            if self._object is None:
                pieces += self._outside(character)
            else:
                self._object.take(character)
                if self._object.done:
                    pieces += self._end(self._object)
        if self._object is not None:
            pieces += self._tell(self._object)
        return _joined(pieces)

    def finish(self) -> list[Piece]:
        """Return what is left once nothing more comes."""
        rest = self._held
        if self._object is not None:
            pieces = self._tell(self._object)
            if self._began:
                return pieces
            rest += self._object.text
        elif self._style is CallStyle.LISTED or (self.calls and not rest.strip()):
            rest = ""
        self._held, self._object = "", None
        return [Said(rest)] if rest else []

    def _outside(self, character: str) -> list[Piece]:
        self._held += character
        if self._style is CallStyle.TAGGED:
            return self._tagged()
        if self._plain:
            return self._give(self._held)
        waste = "[,; \n\t\r]" if self._style is CallStyle.LISTED else "; \n\t\r"
        bare = self._held.strip().removeprefix(_PYTHON).strip(waste)
        if bare == "{":
            self._begin()
        elif bare and not _PYTHON.startswith(bare):
            self._plain = True
            return self._give(self._held)
        return []

    def _tagged(self) -> list[Piece]:
        head, found, tail = self._held.partition(_OPEN)
        if not found:
            return self._give_but(_OPEN if self.calls == 0 else _CLOSE)
        pieces = self._give(head) if head.removeprefix("\n").removesuffix("\n").strip() else []
        self._held = found + tail
        if tail.strip() == "{":
            self._begin()
        elif tail.strip():
            pieces += self._give(self._held)
        return pieces

    def _give_but(self, tag: str) -> list[Piece]:
        """Give what cannot belong to a tag any more: spaces before one are left out."""
        text = self._held.replace(_CLOSE, "") if self.calls else self._held
        keep = max(
            (size for one in (_OPEN, tag) for size in range(1, len(one)) if text.endswith(one[:size])),
            default=0,
        )
        ready = text[: len(text) - keep].rstrip() if text[: len(text) - keep].strip() else ""
        self._held = text[len(ready) :]
        return [Said(ready)] if ready else []

    def _give(self, text: str) -> list[Piece]:
        self._held = ""
        return [Said(text)] if text else []

    def _begin(self) -> None:
        self._object = CallObject()
        self._object.take("{")
        self._held = self._held[: self._held.rindex("{")]
        self._told, self._began = 0, False

    def _tell(self, one: CallObject) -> list[Piece]:
        """Say what is new of a call; before its name and arguments are known it may be none."""
        pieces: list[Piece] = []
        known = one.name and (one.name in self._names or not self._names)
        if not self._began and known and (one.arguments or one.done):
            self._began = True
            self.calls += 1
            pieces.append(Called(self.calls - 1, one.name))
        if self._began and len(one.arguments) > self._told:
            pieces.append(Argued(self.calls - 1, one.arguments[self._told :]))
            self._told = len(one.arguments)
        return pieces

    def _end(self, one: CallObject) -> list[Piece]:
        pieces = self._tell(one)
        self._object = None
        if not self._began:
            return [*pieces, *self._give(self._held + one.text)]
        self._held = ""
        if not one.arguments:
            pieces.append(Argued(self.calls - 1, "{}"))
        return pieces


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Put neighbouring texts together."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, Said) and isinstance(last, Said):
            joined[-1] = Said(last.text + piece.text)
        elif isinstance(piece, Argued) and isinstance(last, Argued) and piece.index == last.index:
            joined[-1] = Argued(piece.index, last.text + piece.text)
        else:
            joined.append(piece)
    return joined
