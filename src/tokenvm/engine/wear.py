"""How much is written to the disk in a day: what wears out an SSD."""

from __future__ import annotations

from collections import deque
from typing import Final

HOUR_S: Final = 3600.0
HOURS: Final = 24


class Wear:
    """Fed with the bytes written since the start, now and then; knows those of the last 24 hours, to the hour."""

    def __init__(self, now_s: float) -> None:
        self._marks: deque[tuple[float, int]] = deque([(now_s, 0)])  # one an hour: when, and bytes by then

    def last_day_bytes(self, now_s: float, written_bytes: int) -> int:
        """Return the bytes written in the last 24 hours, or since the start where that is less long ago."""
        if now_s - self._marks[-1][0] >= HOUR_S:
            self._marks.append((now_s, written_bytes))
        while len(self._marks) > 1 and self._marks[1][0] <= now_s - HOURS * HOUR_S:
            self._marks.popleft()
        return written_bytes - self._marks[0][1]
