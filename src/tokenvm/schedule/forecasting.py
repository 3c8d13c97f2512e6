"""When the device's use is foreseen anew, and from what: the scheduler's sequences as rows of a forecast."""

from __future__ import annotations

from typing import Final

from tokenvm.schedule.common_pages import Sharing
from tokenvm.schedule.lengths import ExpectedLengths
from tokenvm.schedule.limits import Limits
from tokenvm.schedule.request import Sequence
from tokenvm.schedule.running import Running
from tokenvm.schedule.usage import Forecast, Row
from tokenvm.vocab import SeqId

FEW: Final = 128
"""A forecast serves one step for each so many running sequences. For fewer, it is made anew each time."""

PATIENCE: Final = 16
"""After how many steps in which nobody ended the first in the queue is tried again."""


class Forecasting:
    """Keeps a forecast for as long as it is good enough."""

    def __init__(self, limits: Limits, running: Running, sharing: Sharing, lengths: ExpectedLengths) -> None:
        self._limits, self._running = limits, running
        self._sharing, self._lengths = sharing, lengths
        self._most_tokens = (limits.device_slots - limits.beside) * limits.block_tokens
        self._now = 0
        self._forecast: Forecast | None = None
        self._made = 0
        self._refused: SeqId | None = None
        self._refused_at = 0
        self._freed = False

    def tick(self) -> None:
        """A step begins."""
        self._now += 1

    def freed(self) -> None:
        """A running sequence ended."""
        self._freed = True

    def worth_asking(self, first: Sequence) -> bool:
        """Whether the answer may be another than when this sequence was last refused."""
        if first.seq != self._refused:
            return True
        waited = self._now - self._refused_at >= PATIENCE
        return not self._fresh() and (self._freed or waited)

    def fitting(self, batch: list[Sequence]) -> int:
        """Return how many of the first fit on the device beside those that run, in every step to come."""
        self._lengths.refresh()
        rows = [self._row(sequence) for sequence in batch]
        if self._forecast is None or not self._fresh():
            self._forecast = self._made_of(rows)
            self._made, self._freed = self._now, False
        for count, (sequence, row) in enumerate(zip(batch, rows, strict=True)):
            if not self._forecast.admit(row, self._limits.device_slots, self._now - self._made):
                self._refused, self._refused_at = sequence.seq, self._now
                return count
        return len(batch)

    def outgrows(self, sequence: Sequence) -> bool:
        """Whether a sequence is expected to take more than the device alone."""
        return len(sequence.tokens) + self._lengths.remaining(sequence) - 1 > self._most_tokens

    def _fresh(self) -> bool:
        return self._forecast is not None and self._now - self._made < len(self._running) // FEW

    def _made_of(self, likely: list[Row]) -> Forecast:
        limits, running = self._limits, self._running
        rows = [self._row(one) for one in running.decoding.values()]
        rows += [self._row(one) for one in running.prefilling()]
        rate = max(1, limits.max_tokens_per_forward - len(running.decoding))
        return Forecast(rows, limits.block_tokens, limits.beside, rate, likely)

    def _row(self, sequence: Sequence) -> Row:
        block = self._limits.block_tokens
        computed, known = sequence.computed, len(sequence.tokens)
        remaining = self._lengths.remaining(sequence)
        if sequence.begun:
            depth = self._sharing.depth(sequence.seq)
            if depth * block > computed:
                depth = computed // block
        else:
            depth = sequence.found
            computed = computed or depth * block
        decoding = known - computed == 1 and known > sequence.prompt_tokens
        if sequence.oversize or known + remaining - 1 > self._most_tokens:
            return Row(computed, known - computed, remaining, decoding, self._limits.open_slots + 1)
        return Row(computed, known - computed, remaining, decoding, 0, sequence.path, depth)
