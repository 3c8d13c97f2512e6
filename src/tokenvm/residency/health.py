"""Whether a tier is used: on, off after repeated failures, on trial once it has rested. Pure: it is told the time.

A circuit breaker after M. Nygard, "Release It!" (2007), with back-off that doubles from one trial to the next.
"""

from __future__ import annotations

import enum
from typing import Final

IN_A_ROW: Final = 8
"""Failures in a row that switch a tier off."""

WINDOW: Final = 64
MOST_IN_WINDOW: Final = 24
"""So many failures among the last `WINDOW` switch it off as well."""

REST_S: Final = 1.0
MOST_REST_S: Final = 60.0
"""How long a tier rests the first time, and at most: each failed trial doubles it."""

_ALL = (1 << WINDOW) - 1
_ROW = (1 << IN_A_ROW) - 1


class Condition(enum.Enum):
    """ON: used. OFF: left alone for a while. TRIAL: tried by itself, and used by nobody else."""

    ON = "on"
    OFF = "off"
    TRIAL = "trial"


class Health:
    """The condition of one tier, from what is heard of it."""

    def __init__(self) -> None:
        self.condition = Condition.ON
        self.switched_off = 0
        self._past = 0  # one bit for each of the last WINDOW outcomes, 1: failed
        self._good = 0
        self._rest_s = REST_S
        self._until_s = 0.0

    def hear_good(self, pages: int) -> None:
        """Learn that so many pages fared well, one after another."""
        self._past = self._past << min(pages, WINDOW) & _ALL
        self._good += pages
        if self._good >= WINDOW:
            self._rest_s = REST_S

    def hear_failure(self, now_s: float) -> Condition:
        """Learn that a page failed."""
        if self.condition is not Condition.ON:
            return self.condition
        self._past = (self._past << 1 | 1) & _ALL
        self._good = 0
        if self._past & _ROW == _ROW or self._past.bit_count() >= MOST_IN_WINDOW:
            self.switch_off(now_s)
        return self.condition

    def switch_off(self, now_s: float) -> None:
        """Let it rest, longer than the last time."""
        self.condition = Condition.OFF
        self.switched_off += 1
        self._past = self._good = 0
        self._until_s = now_s + self._rest_s
        self._rest_s = min(MOST_REST_S, 2 * self._rest_s)

    def tick(self, now_s: float) -> Condition:
        """Let time pass: one that has rested is on trial."""
        if self.condition is Condition.OFF and now_s >= self._until_s:
            self.condition = Condition.TRIAL
        return self.condition

    def tried(self, *, passed: bool, now_s: float) -> None:
        """Learn how the trial went."""
        assert self.condition is Condition.TRIAL, "Health.tried: not on trial"
        if passed:
            self.condition = Condition.ON
        else:
            self.switch_off(now_s)

    @property
    def until_s(self) -> float:
        """When the rest ends, if it is OFF."""
        return self._until_s
