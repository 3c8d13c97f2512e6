"""Copies of whole pages away from the device, started one layer at a time while the step that fills them runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokenvm.memory.backend import Batch, Copies, CopyEngine, CopyResult, Status
from tokenvm.vocab import Answer


class AlongBatch:
    """A batch whose copies start layer by layer.

    `copies` are the rows of some pages, those of `widths[i]` pages layer by layer, one i after another. Once all layers
    have started it is a `Batch` like any other; asked for its result before, it drops the layers that have not.
    """

    def __init__(self, engine: CopyEngine, copies: Copies, widths: Sequence[int], layers: int) -> None:
        self._engine = engine
        self._copies = copies
        self._rows = _rows_by_layer(widths, layers)
        self._started: list[Batch] = []
        self._flying: list[Batch] = []
        self._result: CopyResult | None = None

    @property
    def complete(self) -> bool:
        """Whether every layer has started, or none can any more."""
        return self._result is not None or len(self._started) == len(self._rows)

    def start(self, layer: int) -> None:
        """Start the copies of the layers up to and with `layer`; their sources will not change any more."""
        while not self.complete and len(self._started) <= layer:
            rows = self._rows[len(self._started)]
            batch = self._engine.submit(self._copies.rows(rows), urgent=False)
            self._started.append(batch)
            self._flying.append(batch)

    def poll(self) -> Answer:
        """See `Batch.poll`."""
        if self._result is None:
            self._flying = [batch for batch in self._flying if batch.poll() is Answer.IN_FLIGHT]
            if self._flying or not self.complete:
                return Answer.IN_FLIGHT
        return self.wait()

    def wait(self) -> Answer:
        """See `Batch.wait`; layers that have not started are dropped."""
        return Answer.HIT if bool((self.result().status == Status.LANDED).all()) else Answer.MISS

    def result(self) -> CopyResult:
        """See `Batch.result`; layers that have not started are dropped."""
        if self._result is None:
            status = np.full(len(self._copies), Status.DROPPED, np.uint8)
            checksums = np.zeros(len(self._copies), np.uint32)
            packed = np.zeros(len(self._copies), np.uint8)
            for batch, rows in zip(self._started, self._rows, strict=False):
                ended = batch.result()
                status[rows], checksums[rows] = ended.status, ended.checksums
                packed[rows] = ended.packed
            self._result = CopyResult(status, checksums, packed)
        return self._result


def _rows_by_layer(widths: Sequence[int], layers: int) -> list[NDArray[np.int64]]:
    """Of each layer, its rows among all."""
    begins = np.cumsum([0, *widths[:-1]]) * layers
    return [
        np.concatenate(
            [np.arange(width) + begin + layer * width for begin, width in zip(begins, widths, strict=True)]
        )
        for layer in range(layers)
    ]
