"""Copies that are tried again: a fault of a device is often over in a moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokenvm.clock import Clock
from tokenvm.memory.backend import Batch, Copies, CopyEngine, CopyResult, Status
from tokenvm.memory.faults import PASSING
from tokenvm.vocab import Answer

BACK_OFF_S: Final = (0.001, 0.02)
"""How long to wait before the second attempt, and before the third, which is the last."""

Hear = Callable[[NDArray[np.uint8], NDArray[np.uint8]], None]
"""Is told of copies that failed: the kind and the status of each."""


def deaf(kinds: NDArray[np.uint8], statuses: NDArray[np.uint8]) -> None:
    """Hear nothing."""


class RetryingCopies:
    """A copy engine over another. Those copies that fail in passing are tried again; `hear` is told of each failure."""

    def __init__(self, inner: CopyEngine, clock: Clock, hear: Hear = deaf) -> None:
        self._inner = inner
        self._clock = clock
        self._hear = hear

    def submit(self, copies: Copies, urgent: bool) -> RetryingBatch:
        """See `CopyEngine.submit`."""
        return RetryingBatch(self._inner, copies, urgent, self._clock, self._hear)


class RetryingBatch:
    """A batch whose result is that of each copy's last attempt."""

    def __init__(self, engine: CopyEngine, copies: Copies, urgent: bool, clock: Clock, hear: Hear) -> None:
        self._engine = engine
        self._copies = copies
        self._urgent = urgent
        self._clock = clock
        self._hear = hear
        n = len(copies)
        self._whole = CopyResult(np.zeros(n, np.uint8), np.zeros(n, np.uint32), np.zeros(n, np.uint8))
        self._rows: NDArray[np.int64] = np.arange(n)  # of the attempt in flight, or of the next one
        self._attempts = 1
        self._due_s = 0.0
        self._done = False
        self._batch: Batch | None = engine.submit(copies, urgent)

    def poll(self) -> Answer:
        """See `Batch.poll`; between two attempts it is in flight."""
        while not self._done:
            if self._batch is None:
                if self._clock.now_s() < self._due_s:
                    return Answer.IN_FLIGHT
                self._try_again()
            if self._batch is not None and self._batch.poll() is Answer.IN_FLIGHT:
                return Answer.IN_FLIGHT
            self._take()
        return self._answer()

    def wait(self) -> Answer:
        """See `Batch.wait`."""
        self.result()
        return self._answer()

    def result(self) -> CopyResult:
        """See `Batch.result`."""
        while not self._done:
            if self._batch is None:
                self._clock.wait_until(self._due_s)
                self._try_again()
            self._take()
        return self._whole

    def _answer(self) -> Answer:
        return Answer.HIT if bool((self._whole.status == Status.LANDED).all()) else Answer.MISS

    def _try_again(self) -> None:
        self._batch = self._engine.submit(self._copies.rows(self._rows), self._urgent)

    def _take(self) -> None:
        """Enter how an attempt ended. Cut short by an interrupt, it may be done again."""
        assert self._batch is not None, "RetryingBatch: nothing was tried"
        ended, rows = self._batch.result(), self._rows
        self._whole.status[rows] = ended.status
        self._whole.checksums[rows] = ended.checksums
        self._whole.packed[rows] = ended.packed
        again = rows[np.isin(ended.status, PASSING)]
        self._rows, self._batch = again, None
        self._done = not len(again) or self._attempts > len(BACK_OFF_S)
        if not self._done:
            self._due_s = self._clock.now_s() + BACK_OFF_S[self._attempts - 1]
            self._attempts += 1
        failed = ended.status != Status.LANDED
        if failed.any():
            self._hear(self._copies.kind[rows[failed]], ended.status[failed])
