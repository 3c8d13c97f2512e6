"""Who is admitted, who is paused, who comes back.

The hard rule: what all admitted sequences, running and paused, may come to own at most fits over all tiers, so that
nobody ever gets stuck. The soft rule, with `Limits.lookahead`: what the running ones are expected to take at most fits
on the device, so that nothing need be streamed. Who would take more than the device alone is charged what it cannot do
without. Whoever comes next and does not fit makes all behind wait; when nobody runs, somebody is admitted in any case.

Where the running ones outgrow the device all the same, those admitted last are paused with all they have computed. A
paused sequence waits at its rank, before all that came later, and comes back only after some sequence ended: so each
pause is paid for by an end, and nobody goes to and fro.
"""

from __future__ import annotations

from typing import Final

from tokenvm.schedule.common_pages import Sharing, path_of
from tokenvm.schedule.forecasting import Forecasting
from tokenvm.schedule.lengths import ExpectedLengths
from tokenvm.schedule.limits import Limits
from tokenvm.schedule.prefixes import Prefixes
from tokenvm.schedule.queue import Queue
from tokenvm.schedule.request import Sequence, Status
from tokenvm.schedule.running import Running
from tokenvm.vocab import Answer, SeqId

BATCH: Final = 16
"""How many sequences are tried together at most: twice as many as before where all fitted, else as many as did."""


class Admission:
    """Takes sequences from the queue to those that run, and back. `room`: device pages that prefills may still fill."""

    def __init__(self, limits: Limits, prefixes: Prefixes) -> None:
        self.running = Running(limits)
        self.queue = Queue()
        self.room: int | None = None
        self._limits = limits
        self._prefixes = prefixes
        self._paused: dict[SeqId, int] = {}  # sequence → how many had ended when it was paused
        self._paused_pages = 0
        self._ended = 0
        self._reach = BATCH
        self._sharing = Sharing()
        self._lengths = ExpectedLengths()
        self._forecasting = Forecasting(limits, self.running, self._sharing, self._lengths)

    @property
    def paused(self) -> int:
        """How many sequences are paused."""
        return len(self._paused)

    def turn(self) -> tuple[list[Sequence], list[Sequence]]:
        """Decide who runs in the next step; return who is paused for it and who comes back."""
        self._forecasting.tick()
        paused = self._make_room()
        resumed: list[Sequence] = []
        while self._worth_trying() and (batch := self._next_batch()):
            taken = self._fitting(batch)
            self._reach = min(BATCH, 2 * self._reach) if taken == len(batch) else max(1, taken)
            for sequence in batch[taken:]:
                self.queue.push(sequence)
            resumed += self._start(batch[:taken])
            if taken < len(batch):
                break
        if not len(self.running):
            resumed += self.bring_back()
        return paused, resumed

    def bring_back(self) -> list[Sequence]:
        """Let the first paused sequence run, because nobody else can; return it, if there is one and a place for it."""
        first = self._first_paused()
        if first is None or len(self.running) >= self._limits.crowd:
            return []
        self.queue.remove(first.seq)
        return self._start([first])

    def look_up(self, sequence: Sequence) -> Answer:
        """Ask what is found of a sequence that has not begun; one whose prompt is scored computes it all."""
        if sequence.scored:
            return Answer.HIT
        match = self._prefixes.match(sequence.seq)
        sequence.found = len(match.units)
        if sequence.found:
            self._name_pages(sequence)
            self._sharing.found(sequence.path[: sequence.found])
        return match.answer

    def new_slots(self, sequence: Sequence) -> int:
        """Return how many slots a sequence takes when it begins, besides the pages it computes."""
        if sequence.oversize:
            return self._limits.open_slots + 1
        return self._limits.beside + self._sharing.lacking(sequence.path[: sequence.found])

    def begin(self, sequence: Sequence) -> None:
        """Let a running sequence begin behind what was found of it."""
        sequence.begun = True
        self._lengths.begin(sequence)
        if sequence.computed:
            return  # it was filled from elsewhere
        sequence.computed = sequence.found * self._limits.block_tokens
        if not sequence.scored:
            self._name_pages(sequence)
        self._sharing.begin(sequence.seq, sequence.path, sequence.found)
        if sequence.oversize:
            self._sharing.leave(sequence.seq)

    def resize(self, limits: Limits) -> None:
        """Hold as many pages as these limits say from now on; nothing else of them is new."""
        self._limits = limits

    def over_promised(self) -> list[Sequence]:
        """Return who has to be set back so that the pages of those left fit: who comes last, never the first."""
        owners, limits = self.owners(), self._limits
        left = len(owners)
        while left > 1 and sum(one.most_pages for one in owners[:left]) > limits.most_pages(left):
            left -= 1
        return owners[left:]

    def owners(self) -> list[Sequence]:
        """Return who may own pages, running or paused, in the order of their rank."""
        owners = [*self.running.everyone.values(), *(self.queue.at(seq) for seq in self._paused)]
        return sorted(owners, key=lambda one: one.rank)

    def set_back(self, sequence: Sequence) -> None:
        """Let a running or paused sequence wait again as if it had never begun."""
        self.end(sequence, answered=False)
        sequence.set_back()
        self.queue.push(sequence)

    def cut(self, sequence: Sequence) -> None:
        """Note that a sequence lost what it had computed beyond `computed`."""
        self._sharing.cut(sequence.seq, sequence.computed // self._limits.block_tokens)
        if sequence.seq in self.running:
            self.running.file(sequence)

    def end(self, sequence: Sequence, *, answered: bool) -> None:
        """Forget a sequence, wherever it is; its length counts if it was `answered` and not broken off."""
        if sequence.seq in self.running:
            self.running.remove(sequence)
            self._ended += 1
            self._forecasting.freed()
        else:
            self.queue.remove(sequence.seq)
            self._unpause(sequence)
        self._sharing.end(sequence.seq)
        self._lengths.end(sequence, answered=answered)

    def _name_pages(self, sequence: Sequence) -> None:
        if not sequence.path:
            sequence.path = path_of(sequence.request, self._limits.block_tokens)

    def _worth_trying(self) -> bool:
        """Whether somebody waits who was not just refused."""
        first = self.queue.first()
        return first is not None and (not len(self.running) or self._forecasting.worth_asking(first))

    # Who may own pages

    def _next_batch(self) -> list[Sequence]:
        """Take from the queue those whom the hard rule allows, a few at a time."""
        batch: list[Sequence] = []
        while len(batch) < self._reach:
            first = self.queue.first()
            if first is None:
                break
            if not self._holds([*batch, first]):
                return batch or self._returning()
            if not self._may_return(first):
                break
            batch.append(self.queue.pop())
        return batch

    def _returning(self) -> list[Sequence]:
        """Take the first paused sequence if it may run: who comes first waits for pages that paused ones hold."""
        first = self._first_paused()
        if first is None or not self._holds([first]) or not self._may_return(first):
            return []
        self.queue.remove(first.seq)
        return [first]

    def _first_paused(self) -> Sequence | None:
        return min((self.queue.at(seq) for seq in self._paused), key=lambda one: one.rank, default=None)

    def _holds(self, batch: list[Sequence]) -> bool:
        """Whether places, slots of open pages and pages to own are left for all of these as well."""
        limits = self._limits
        crowd = len(self.running) + len(batch)
        new = [sequence for sequence in batch if sequence.seq not in self._paused]
        paused = len(self._paused) - (len(batch) - len(new))
        if crowd > limits.crowd or crowd + paused > limits.max_num_seqs:
            return False
        pages = self.running.promised_pages + self._paused_pages + sum(one.most_pages for one in new)
        alone = crowd == 1 and not paused  # where the tiers have shrunk, it goes as far as it can
        return alone or pages + paused * limits.beside <= limits.most_pages(crowd)

    def _may_return(self, sequence: Sequence) -> bool:
        """Whether a sequence was not paused, or some other has ended since, or nobody runs."""
        return self._paused.get(sequence.seq) != self._ended or not len(self.running)

    # Who fits on the device

    def _fitting(self, batch: list[Sequence]) -> int:
        """Return how many of the first may run together with those that do; at least one if nobody does."""
        limits, running = self._limits, self.running
        slots = running.promised_slots + sum(one.most_pages + limits.beside for one in batch)
        if not limits.lookahead or slots <= limits.device_slots:
            return len(batch)
        least = 0 if len(running) else 1
        for sequence in batch:
            if not sequence.begun:
                self.look_up(sequence)
        return max(least, self._forecasting.fitting(batch))

    def _start(self, batch: list[Sequence]) -> list[Sequence]:
        """Let them run; return those that were paused."""
        resumed = []
        for sequence in batch:
            if self._limits.lookahead and self._forecasting.outgrows(sequence):
                sequence.oversize = True
            self.running.add(sequence)
            if self._unpause(sequence):
                resumed.append(sequence)
                if not sequence.oversize:
                    self._sharing.join(sequence.seq)
        return resumed

    def _unpause(self, sequence: Sequence) -> bool:
        if self._paused.pop(sequence.seq, None) is None:
            return False
        self._paused_pages -= sequence.most_pages
        return True

    # Who gives way

    def _make_room(self) -> list[Sequence]:
        """Pause whom the device cannot hold in the next step, and find what room is left for prefills."""
        limits, running = self._limits, self.running
        self.room = None
        if not limits.lookahead or running.promised_slots <= limits.device_slots:
            return []
        taken = self._taken_next()
        paused: list[Sequence] = []
        if taken > limits.device_slots:
            self._mark_oversize()
            paused = self._pause_enough()
            taken = self._taken_next()
        self.room = limits.device_slots - taken
        return paused

    def _taken_next(self) -> int:
        """Return the slots that all who began take once every decoding sequence has run one token more."""
        block, running = self._limits.block_tokens, self.running
        pages = sum([one.computed // block for one in running.decoding.values()]) + len(running.decoding)
        begun = [one for one in running.prefilling() if one.begun]
        pages += sum(self._limits.pages(one.computed) for one in begun)
        taken = pages + self._limits.beside * (len(running.decoding) + len(begun)) - self._sharing.duplicates
        for one in self._oversize_running():
            taken += self._limits.open_slots + 1 - self._slots_next(one)
        return taken

    def _oversize_running(self) -> list[Sequence]:
        return [one for one in self.running.everyone.values() if one.oversize and one.begun]

    def _slots_next(self, sequence: Sequence) -> int:
        return self._limits.pages(sequence.computed + sequence.decoding) + self._limits.beside

    def _mark_oversize(self) -> None:
        for one in self.running.everyone.values():
            if one.begun and not one.oversize and self._slots_next(one) > self._limits.device_slots:
                one.oversize = True
                self._sharing.leave(one.seq)

    def _pause_enough(self) -> list[Sequence]:
        """Pause those that come last until the others fit or one is left. Who has not begun just waits again."""
        paused: list[Sequence] = []
        resident = [one for one in self.running.last_first() if not one.oversize]
        taken, left = self._taken_next(), sum(one.begun for one in resident)
        for one in resident:
            if left == 1 or taken <= self._limits.device_slots or not self._may_pause(one):
                break
            if one.begun:
                duplicates = self._sharing.duplicates
                self._sharing.leave(one.seq)
                taken -= self._slots_next(one) - (duplicates - self._sharing.duplicates)
                left -= 1
                self._paused[one.seq] = self._ended
                self._paused_pages += one.most_pages
                paused.append(one)
            self.running.remove(one)
            one.status = Status.PAUSED if one.begun else Status.WAITING
            self.queue.push(one)
        return paused

    def _may_pause(self, sequence: Sequence) -> bool:
        """Whether the tiers below have room for what an open page takes beside its own, once it leaves as well."""
        limits = self._limits
        pages = self.running.promised_pages + self._paused_pages
        return not limits.beside or pages + (len(self._paused) + 1) * limits.beside <= limits.held_pages
