"""Stop strings in a text that comes piece by piece."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes a text on, up to the first of some stop strings.

    The first is the one that is complete first, and of several complete at the same character the longest: so it does
    not matter how the text was cut into pieces. Text that may yet become a stop string is held back. The time for a
    character is constant, however long the text and the stop strings are (Knuth, Morris, Pratt 1977).
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self.found: str | None = None
        self._include = include
        self._patterns = [_Pattern(stop) for stop in stops]
        self._held = ""

    def push(self, piece: str, counts: bool = True) -> str:
        """Take the next piece and return what can be told of the text; nothing may come after a stop was `found`.

        What ends in a piece that does not count is no stop.
        """
        if not self._patterns:
            return piece
        before = len(self._held)
        self._held += piece
        for at, character in enumerate(piece, start=before + 1):
            ended = [one.text for one in self._patterns if one.step(character)]
            if ended and counts:
                self.found = max(ended, key=len)
                return self._tell(at if self._include else at - len(self.found))
        return self._tell(len(self._held) - max(one.reached for one in self._patterns))

    def rest(self) -> str:
        """Return what was held back, because nothing more comes."""
        return self._tell(len(self._held)) if self.found is None else ""

    def _tell(self, size: int) -> str:
        told, self._held = self._held[:size], self._held[size:]
        return told


class _Pattern:
    """One stop string. `reached` is the length of its longest part, from its start on, that the text ends with.

    The whole string does not count as such a part.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.reached = 0
        self._shorter = [0, 0]  # length reached → the next shorter one that the text ends with as well
        for at in range(1, len(text)):
            self._shorter.append(self._next(self._shorter[at], text[at]))

    def step(self, character: str) -> bool:
        """Go on by a character; return whether the string is complete."""
        self.reached = self._next(self.reached, character)
        complete = self.reached == len(self.text)
        if complete:
            self.reached = self._shorter[self.reached]
        return complete

    def _next(self, reached: int, character: str) -> int:
        while reached and self.text[reached] != character:
            reached = self._shorter[reached]
        return reached + (self.text[reached] == character)
