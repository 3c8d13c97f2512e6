"""What an engine does where a tier fails it: sequences give way, wait for the tier, or are ended by name."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from tokenvm.clock import Clock
from tokenvm.errors import StorageError, TokenVMError
from tokenvm.kvcache import KVCache
from tokenvm.schedule.scheduler import Scheduler
from tokenvm.vocab import SeqId

PATIENCE_S: Final = 30.0
"""How long a sequence that runs alone waits for a tier that is left alone, before its request is ended."""

LOOK_S: Final = 0.02
"""How long to wait before looking again."""

MAX_FALLBACKS: Final = 32
"""How often in a row a sequence may lose a page before it gets its next token: more means that a tier is broken."""

_log = logging.getLogger("tokenvm.engine")


class Rescue:
    """Keeps an engine going on what the tiers hold now. `set_back_sequences` counts those who had to begin again."""

    def __init__(self, scheduler: Scheduler, kvcache: KVCache, clock: Clock) -> None:
        self._scheduler, self._kvcache, self._clock = scheduler, kvcache, clock
        self._until_s: float | None = None  # patience with the tier ends then
        self._fallbacks: dict[SeqId, int] = {}  # of each sequence, since its last token
        self._again: set[SeqId] = set()  # those who have begun before
        self.set_back_sequences = 0

    def fit(self) -> None:
        """Let the tiers that rest be tried, and nobody run who does not fit in what is left."""
        self._kvcache.tend()
        self._put_back(self._scheduler.resize(self._kvcache.vm.room.usable_below))

    def restart(self) -> None:
        """Let everybody begin again, after an interrupt that left decisions half done."""
        self._put_back(self._scheduler.restart())

    def begun_before(self, seq: SeqId) -> bool:
        """Whether a sequence that begins was set back."""
        return seq in self._again

    def give_way(self, error: StorageError) -> dict[str, TokenVMError]:
        """Make room after a step that found none; return the requests that must be ended, and why.

        Raises the error where nobody can give way and no tier will come back.
        """
        mends = self._kvcache.vm.watch.mends
        self.fit()
        last = self._scheduler.set_back_last()
        if last:
            self._put_back(last)
            return {}
        if not mends and not self._kvcache.vm.watch.mends:
            raise error
        now_s = self._clock.now_s()
        if self._until_s is None:
            self._until_s = now_s + PATIENCE_S
        if now_s < self._until_s:
            self._clock.wait_until(now_s + LOOK_S)
            return {}
        self._until_s = None
        why = StorageError(
            "the disk or host tier keeps failing, and the memory that is left does not hold this request: "
            "check the disk below nvme_path, or raise kv_limit or host_memory"
        )
        return {self._scheduler.sequence(seq).request.request_id: why for seq in self._scheduler.running}

    def stepped(self, lost: Iterable[SeqId], spoke: Iterable[SeqId]) -> None:
        """Hear of a step that was carried out: who fell back in it, and who got a token."""
        self._until_s = None
        for seq in lost:
            self._fallbacks[seq] = self._fallbacks.get(seq, 0) + 1
        for seq in spoke:
            self._fallbacks.pop(seq, None)

    def hopeless(self) -> dict[str, TokenVMError]:
        """Return the requests with a sequence that only ever falls back, and what to do about it."""
        return {
            self._scheduler.sequence(seq).request.request_id: StorageError(
                f"pages came back damaged {count} times in a row: "
                "check the disk below nvme_path, or set nvme_path to another disk"
            )
            for seq, count in self._fallbacks.items()
            if count >= MAX_FALLBACKS
        }

    def forget(self, seq: SeqId) -> None:
        """The sequence ended."""
        self._fallbacks.pop(seq, None)
        self._again.discard(seq)

    def _put_back(self, seqs: Iterable[SeqId]) -> None:
        """Take the pages of sequences that were set back, and let them be found again."""
        for seq in seqs:
            if seq in self._kvcache:
                self._kvcache.release(seq)
                self._again.add(seq)
                self.set_back_sequences += 1
                _log.info("sequence %d begins again: its pages have no room below the device", seq)
            else:
                self._kvcache.forget(seq)
            request = self._scheduler.sequence(seq).request
            self._kvcache.announce(seq, request.prompt_token_ids, request.cache_salt)
