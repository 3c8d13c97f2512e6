"""Time as a value that can be faked. Engine code asks a Clock; pure code is given `now_s`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock in seconds."""

    def now_s(self) -> float:
        """Return seconds since an arbitrary fixed moment."""
        ...

    def wait_until(self, moment_s: float) -> None:
        """Return once `now_s` has reached `moment_s`."""
        ...


class RealClock:
    """The machine's monotonic clock, the one native timestamps use (CLOCK_MONOTONIC)."""

    def now_s(self) -> float:
        """Return seconds since boot."""
        return time.monotonic()

    def wait_until(self, moment_s: float) -> None:
        """Sleep."""
        while (left_s := moment_s - self.now_s()) > 0:
            time.sleep(left_s)


class FakeClock:
    """A clock that moves only when told to."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """Return the time it was last set to."""
        return self._now_s

    def wait_until(self, moment_s: float) -> None:
        """Move there at once."""
        self._now_s = max(self._now_s, moment_s)

    def advance(self, seconds: float) -> None:
        """Move forward; time never runs backwards."""
        if seconds < 0:
            raise ValueError(f"advance({seconds}): time does not run backwards")
        self._now_s += seconds
