"""How to bring a structured answer to its end: tokens by which a grammar is satisfied soon."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

Bits = NDArray[np.bool_]

MAX_STEPS: Final = 400
"""A way that is longer is not looked for further."""

_WINDOW: Final = 8
"""Of so many choices it is looked at what they were: a repetition does not end by itself."""

_CLASSES: Final = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r'[\]}]+|"[\]}]+',
        r'"',
        r",",
        r'":?"?|\{|\[|null|true|false|0|""|\{\}|\[\]',
        r"@|:",
        r"[0-9]",
        r"[A-Z]",
        r"[a-z]",
        r"[^\s\"\\]+",
        r"\S+",
        r" ",
    )
)
"""What is taken first where there is a choice: what closes or is short, what addresses need, letters; spaces last."""

_CLOSING: Final = 3
"""The first classes: taken as often as they can be."""

_FREE: Final = 40
"""Where more short tokens than these may come, a text is being written: what closes JSON would only be part of it."""

_QUOTE: Final = 1
"""The class of what ends such a text in JSON."""

_SPELT: Final = 4
"""The first classes again: of the others, one character at a time does."""


class Closers:
    """Tokens in the order in which they lead to an end. Immutable; one serves all grammars of a tokenizer."""

    def __init__(self, texts: Iterable[str], ends: Iterable[int]) -> None:
        classes = [_class_of(text) for text in texts]
        self.ends = frozenset(ends)
        self._classes = np.array([one for one, _ in classes], dtype=np.int64)
        ranks = np.array([one * 1000 + length for one, length in classes], dtype=np.int64)
        self._order = ranks.argsort(kind="stable")
        short = (ranks % 1000 <= 1) | (self._classes < _SPELT)
        self._few = self._order[short[self._order]]

    def way_out(
        self, matcher: LLMatcher, allowed: Callable[[LLMatcher], Bits], most: int
    ) -> list[int] | None:
        """Return tokens, at most `most` and the last an end token, after which the answer is whole; None: not found.

        Greedy: not the shortest way, but one whose existence is certain. `matcher` is used up.
        """
        way: list[int] = []
        chosen: list[int] = []
        while len(way) < min(most, MAX_STEPS):
            found = self._found(allowed(matcher))
            if not found.size:
                return None
            way.append(self._best(found, chosen))
            if way[-1] in self.ends:
                return way
            if not matcher.consume_token(way[-1]):
                return None
        return None

    def _found(self, bits: Bits) -> NDArray[np.int64]:
        """Return the allowed tokens, the best first: an end alone."""
        for end in self.ends:
            if end < bits.size and bits[end]:
                return np.array([end])
        found: NDArray[np.int64] = self._few[bits[self._few]]
        return found if found.size else self._order[bits[self._order]]

    def _best(self, found: NDArray[np.int64], chosen: list[int]) -> int:
        """Take the first one, or what has not been tried lately; `chosen` are the choices so far."""
        if found.size > _FREE:
            kinds = self._classes[found]
            text = found[(kinds == _QUOTE) | (kinds >= _SPELT)]
            found = text if text.size else found
        if found.size == 1:
            return int(found[0])
        lately = chosen[-_WINDOW:]
        classes = Counter(int(self._classes[token]) for token in lately)
        firsts = found[np.unique(self._classes[found], return_index=True)[1]]
        token = min(firsts.tolist(), key=lambda one: self._tried(one, classes))
        same = found[self._classes[found] == self._classes[token]]
        fresh = same[~np.isin(same, lately)] if self._classes[token] >= _CLOSING else same
        token = int(fresh[0] if fresh.size else same[0])
        chosen.append(token)
        return token

    def _tried(self, token: int, classes: Counter[int]) -> tuple[int, int]:
        kind = int(self._classes[token])
        return (0 if kind < _CLOSING else classes[kind] // 3), kind


def _class_of(text: str) -> tuple[int, int]:
    """Return a token's class and its length in characters, at most 99."""
    length = min(len(text), 99)
    return next(
        ((at, length) for at, pattern in enumerate(_CLASSES) if pattern.fullmatch(text)),
        (len(_CLASSES), length),
    )
