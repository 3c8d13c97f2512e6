"""The register of a disk that keeps its pages: what recovery found, and a journal of what has come since."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tokenvm.memory.page_format import NO_KEY, PAGE, pack_bits
from tokenvm.memory.page_journal import PageJournal
from tokenvm.memory.recovery import Recovered
from tokenvm.memory.register import KeptPage
from tokenvm.memory.tier import TierStore
from tokenvm.vocab import PageKey, SlotId


class ReadRegister:
    """Pages that another process keeps, as they were when this one started; nothing is written."""

    keeps = False
    writable = False

    def __init__(self, recovered: Recovered, seconds: float, oldest_s: Callable[[], float]) -> None:
        slots, written = recovered.pages["slot"].tolist(), recovered.pages["written_s"].tolist()
        names = zip(slots, recovered.keys, recovered.parents, written, strict=True)
        self.found: Sequence[KeptPage] = [
            KeptPage(SlotId(slot), PageKey(key), PageKey(b"" if parent == NO_KEY else parent), written_s)
            for slot, key, parent, written_s in names
        ]
        self.idle_order = recovered.idle_order
        self._losses = recovered.losses
        self._seconds = seconds
        self._oldest_s = oldest_s

    def remember(self, slot: SlotId, key: PageKey, parent: PageKey) -> float:
        """See `Register.remember`."""
        return 0.0

    def forget(self, slots: Iterable[SlotId]) -> None:
        """See `Register.forget`."""

    def expired_before(self) -> float:
        """See `Register.expired_before`."""
        return self._oldest_s()

    def flush(self) -> None:
        """See `Register.flush`."""

    def close(self, in_order: Sequence[SlotId]) -> None:
        """See `Register.close`."""

    def as_dict(self) -> dict[str, Any]:
        """See `Register.as_dict`."""
        warm = {"warm_pages": len(self.found), "warm_s": self._seconds}
        return {"keeps": self.keeps, **warm, **asdict(self._losses)}


class DiskRegister(ReadRegister):
    """Also writes down what comes: a record for each page of `store` that is remembered, on the journal's thread."""

    keeps = True
    writable = True

    def __init__(
        self,
        recovered: Recovered,
        seconds: float,
        oldest_s: Callable[[], float],
        store: TierStore,
        fingerprint: bytes,
        journal: PageJournal,
        now_s: Callable[[], float],
    ) -> None:
        super().__init__(recovered, seconds, oldest_s)
        self._store = store
        self._fingerprint = np.frombuffer(fingerprint, np.uint8)
        self._journal = journal
        self._now_s = now_s
        self._type = recovered.pages.dtype

    def remember(self, slot: SlotId, key: PageKey, parent: PageKey) -> float:
        """See `Register.remember`."""
        now_s = self._now_s()
        row = np.zeros(1, self._type)
        row["kind"] = PAGE
        row["slot"] = slot
        row["written_s"] = int(now_s)
        row["key"] = np.frombuffer(key, np.uint8)
        row["parent"] = np.frombuffer(parent or NO_KEY, np.uint8)
        row["fingerprint"] = self._fingerprint
        row["checksums"] = self._store.checksums[slot]
        row["packed"] = pack_bits(self._store.packed[slot])
        self._journal.remember(row[0])
        return now_s

    def forget(self, slots: Iterable[SlotId]) -> None:
        """See `Register.forget`."""
        self._journal.forget(slots)

    def flush(self) -> None:
        """See `Register.flush`."""
        self._journal.flush()

    def close(self, in_order: Sequence[SlotId]) -> None:
        """See `Register.close`."""
        self._journal.close(in_order)

    def as_dict(self) -> dict[str, Any]:
        """See `Register.as_dict`."""
        journal = self._journal
        return {
            **super().as_dict(),
            "kept_pages": journal.pages,
            "flushed_pages": journal.flushed_pages,
            "records": journal.records,
            "index_failures": journal.failures,
        }
