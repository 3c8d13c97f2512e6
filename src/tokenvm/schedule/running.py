"""Who runs: those that decode and those that prefill, each in their order, and what they were promised."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from tokenvm.schedule.limits import Limits
from tokenvm.schedule.request import Sequence, Status
from tokenvm.vocab import SeqId


class Running:
    """The running sequences. `everyone` is in the order of admission, `decoding` in that of the first tokens."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.everyone: dict[SeqId, Sequence] = {}
        self.decoding: dict[SeqId, Sequence] = {}
        self._prefills: list[tuple[int, SeqId]] = []
        self._promised_pages = 0

    def __len__(self) -> int:
        return len(self.everyone)

    def __contains__(self, seq: SeqId) -> bool:
        return seq in self.everyone

    @property
    def promised_pages(self) -> int:
        """The most pages that all of them may come to own."""
        return self._promised_pages

    @property
    def promised_slots(self) -> int:
        """The most slots that all of them may come to take: their pages, and what open pages take beside."""
        return self._promised_pages + len(self.everyone) * self._limits.beside

    def prefilling(self) -> Iterator[Sequence]:
        """Yield those that prefill: by priority, then by arrival. They stay where they are meanwhile."""
        for _, seq in self._prefills:
            yield self.everyone[seq]

    def add(self, sequence: Sequence) -> None:
        """Let a sequence run."""
        sequence.status = Status.RUNNING
        self.everyone[sequence.seq] = sequence
        self._promised_pages += sequence.most_pages
        self._enter(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence run no more."""
        del self.everyone[sequence.seq]
        self._promised_pages -= sequence.most_pages
        if self.decoding.pop(sequence.seq, None) is None:
            self._leave_prefills(sequence)

    def file(self, sequence: Sequence) -> None:
        """Put a sequence where it belongs, after its tokens or what is computed of them changed."""
        if sequence.decoding is not (sequence.seq in self.decoding):
            if self.decoding.pop(sequence.seq, None) is None:
                self._leave_prefills(sequence)
            self._enter(sequence)

    def last_first(self) -> list[Sequence]:
        """Return them in the order in which they have to give way: lowest priority, then latest admission first."""
        latest_first = list(self.everyone.values())[::-1]
        return sorted(latest_first, key=lambda one: -one.request.priority)

    def _enter(self, sequence: Sequence) -> None:
        if sequence.decoding:
            self.decoding[sequence.seq] = sequence
        else:
            bisect.insort(self._prefills, sequence.rank)

    def _leave_prefills(self, sequence: Sequence) -> None:
        del self._prefills[bisect.bisect_left(self._prefills, sequence.rank)]
