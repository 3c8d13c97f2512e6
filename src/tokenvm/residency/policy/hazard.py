"""How soon units of one class come back, learnt from those that did and did not; and what a place for one earns.

Ages and times are counted in uses of any unit, so nothing here depends on a clock.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

BUCKETS: Final = 32
"""Ages are told apart by octaves: bucket b begins at `FIRST` << (b - 1)."""
FIRST: Final = 16
PRIOR_RETURNS: Final = 0.02
PRIOR_BUCKETS: Final = 10
"""Of each bucket, before anything is known: so many returns in the time that so many units need to pass it."""

_WIDTHS: Final = (FIRST, *(FIRST << bucket for bucket in range(BUCKETS - 1)))


def bucket_of(age: int) -> int:
    """Return the bucket of an age."""
    return (age // FIRST).bit_length()


class ReturnTimes:
    """Stays of units of one class: each begins with a use and ends with the next use, or unseen.

    A life table: the hazard of an age is the share of those who reached it that came back then (Kaplan and Meier,
    1958).
    """

    def __init__(self) -> None:
        self._returned = [0.0] * BUCKETS
        self._unseen = [0.0] * BUCKETS
        self._waiting: Counter[int] = Counter()  # stays that have not ended, by the epoch of their beginning

    def begin(self, epoch: int, units: int) -> None:
        """So many units were used in this epoch."""
        self._waiting[epoch] += units

    def end(self, epoch: int, age: int, units: int, *, returned: bool) -> None:
        """So many stays that began in this epoch ended at this age: the units were used again, or forgotten."""
        self._waiting[epoch] -= units
        (self._returned if returned else self._unseen)[bucket_of(age)] += units

    def hazards(self, epoch: int, epoch_length: int) -> list[float]:
        """Return the chance of a return per use of any unit, by bucket; now is the end of an epoch."""
        ended = list(self._unseen)
        for began, count in list(self._waiting.items()):
            if count:
                ended[min(BUCKETS - 1, bucket_of((epoch - began) * epoch_length + epoch_length // 2))] += (
                    count
                )
            else:
                del self._waiting[began]
        hazards, reached = [0.0] * BUCKETS, 0.0
        for bucket in reversed(range(BUCKETS)):
            here = self._returned[bucket] + ended[bucket]
            waited = (reached + here / 2) * _WIDTHS[bucket]
            prior = PRIOR_RETURNS * PRIOR_BUCKETS * _WIDTHS[bucket]
            hazards[bucket] = (self._returned[bucket] + PRIOR_RETURNS) / (waited + prior)
            reached += here
        return hazards

    def fade(self, factor: float) -> None:
        """Let what was seen so far count less."""
        self._returned = [count * factor for count in self._returned]
        self._unseen = [count * factor for count in self._unseen]


def worth(hazards: list[float]) -> list[float]:
    """Return by bucket what keeping a unit of that age earns: returns per time kept, over the best time to give up.

    That is the index of Gittins (1979) for one arm: a place is worth most to the unit that will soonest have used it,
    or soonest be known not to.
    """
    found = []
    for bucket in range(BUCKETS):
        best, alive, returns, kept = 0.0, 1.0, 0.0, 0.0
        for later in range(bucket, BUCKETS):
            width = _WIDTHS[later] / (2 if later == bucket else 1)
            comes = -math.expm1(-hazards[later] * width)
            returns += alive * comes
            kept += alive * comes / hazards[later]
            alive *= 1 - comes
            best = max(best, returns / kept)
            if alive < 1e-3:
                break
        found.append(best)
    return found
