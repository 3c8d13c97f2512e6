"""How long answers become: expected from those that have ended, class by class.

A request may give the class it belongs to. Of each class, the last answers are kept as parts of the most they might
have become. A sequence that has produced some tokens is compared with the answers that became at least as long:
their mean and a margin of a quarter of their standard deviation is what it is expected to become.

Answers that end early are known early. So that they alone do not speak for their class, it is believed only after all
of the first sixteen that began have ended, and until then everything is expected to become as long as it may.
Whoever outlives every answer known is expected to go on to the end as well.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import Final

from tokenvm.schedule.request import Sequence
from tokenvm.vocab import SeqId

WINDOW: Final = 2048
"""How many answers of a class are remembered."""

WARM: Final = 16
"""How many of the first must have ended, and how many answers be known, before they are believed."""

BINS: Final = 256
"""Into how many steps the part of what was allowed is divided. Each counts as its upper end."""

MARGIN: Final = 0.25
"""How many standard deviations are added to the mean."""

MAX_CLASSES: Final = 1024
"""How many classes are remembered; beyond, the one that nobody began in for longest is forgotten."""


class Class:
    """The answers of one class of requests. Entering one takes constant time, making the table anew BINS times that.

    `shares`: the part of what is allowed that is expected of those that got as far as each bin; empty until it is warm.
    """

    def __init__(self) -> None:
        self._bins: deque[int] = deque()
        self._counts = [0] * BINS
        self._begun = 0
        self._early = WARM  # of the first that begin, how many have not ended
        self.shares: list[float] = []

    def begin(self) -> int:
        """Note that a sequence begins; return the number to end it with."""
        self._begun += 1
        return self._begun - 1

    def end(self, number: int) -> None:
        """Note that the sequence of that number ended, in whatever way."""
        self._early -= number < WARM

    def enter(self, produced: int, allowed: int) -> None:
        """Remember an answer of `produced` tokens where `allowed` might have been."""
        self._bins.append((produced * BINS - 1) // allowed)
        self._counts[self._bins[-1]] += 1
        if len(self._bins) > WINDOW:
            self._counts[self._bins.popleft()] -= 1

    def refresh(self) -> None:
        """Make the table anew."""
        if self._early <= 0 and len(self._bins) >= WARM:
            self.shares = _shares(self._counts)


def _shares(counts: list[int]) -> list[float]:
    """Return for each bin the mean and margin of what lies in it or above; 1.0 where nothing does."""
    shares = [1.0] * BINS
    known, total, squares = 0, 0.0, 0.0
    for index in range(BINS - 1, -1, -1):
        value, count = (index + 1) / BINS, counts[index]
        known, total, squares = known + count, total + count * value, squares + count * value * value
        if known:
            mean = total / known
            deviation = math.sqrt(max(0.0, squares / known - mean * mean))
            shares[index] = min(1.0, mean + MARGIN * deviation)
    return shares


class ExpectedLengths:
    """Expects lengths of sequences by what became of others of their class."""

    def __init__(self) -> None:
        self._classes: OrderedDict[str, Class] = OrderedDict()
        self._numbers: dict[SeqId, tuple[Class, int]] = {}
        self._changed: set[Class] = set()

    def begin(self, sequence: Sequence) -> None:
        """Note that a sequence begins."""
        found = self._of(sequence)
        self._numbers[sequence.seq] = found, found.begin()

    def end(self, sequence: Sequence, *, answered: bool) -> None:
        """Note that a sequence ended; its length counts if it was `answered` and not broken off."""
        found, number = self._numbers.pop(sequence.seq, (None, 0))
        if found is not None:
            found.end(number)
            if answered:
                found.enter(sequence.new_tokens, sequence.max_new_tokens)
            self._changed.add(found)

    def refresh(self) -> None:
        """Let what ended since the last time count."""
        for changed in self._changed:
            changed.refresh()
        self._changed.clear()

    def remaining(self, sequence: Sequence) -> int:
        """Return how many more tokens a sequence is expected to produce: at least 1."""
        found = self._classes.get(sequence.request.request_class)
        produced, allowed = len(sequence.tokens) - sequence.prompt_tokens, sequence.max_new_tokens
        if found is None or not found.shares:
            return allowed - produced
        expected = math.ceil(found.shares[((produced + 1) * BINS - 1) // allowed] * allowed)
        return max(1, min(expected, allowed) - produced)

    def _of(self, sequence: Sequence) -> Class:
        name = sequence.request.request_class
        if name not in self._classes:
            self._classes[name] = Class()
            if len(self._classes) > MAX_CLASSES:
                self._classes.popitem(last=False)
        self._classes.move_to_end(name)
        return self._classes[name]
