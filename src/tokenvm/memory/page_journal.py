"""The thread that writes the index of a disk tier: what landed and what was given up, in order, in groups."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tokenvm.memory.page_format import EMPTY, PAGE, Records
from tokenvm.memory.page_index import FileCalls, IndexFiles

GROUP_S = 0.25
"""How long records are gathered before they are written, unless somebody waits for them."""

MOST_FAILURES = 3
"""Failures in a row after which nothing more is written down."""

_log = logging.getLogger("tokenvm.memory")


class PageJournal:
    """Writes records behind their pages and keeps what the index says in memory, for checkpoints.

    `pages` are those that are there, one record each. `slab_of` names the open file that a slot lies in. With `flush`
    the slabs of new pages are flushed before their records, and the index after them; `flushed_pages` counts those.
    """

    def __init__(
        self,
        files: IndexFiles,
        pages: Records,
        slab_of: Callable[[int], int],
        *,
        flush: bool,
        calls: FileCalls,
        group_s: float = GROUP_S,
    ) -> None:
        self._files = files
        self._type = pages.dtype
        self._slab_of = slab_of
        self._flush = flush
        self._calls = calls
        self._group_s = group_s
        self._known = {int(row["slot"]): row for row in pages}
        self._queue: list[np.void] = []
        self._said = self._written = 0  # records, since birth
        self._waiting = self._closing = self._broken = False
        self._changed = threading.Condition()
        self.failures = self.flushed_pages = self.records = 0
        self._failed_in_a_row = 0
        self._thread = threading.Thread(target=self._run, name="tokenvm-index", daemon=True)
        self._thread.start()

    @property
    def pages(self) -> int:
        """How many pages the index knows, or will once the queue is written."""
        with self._changed:
            return len(self._known)

    def remember(self, row: np.void) -> None:
        """Queue a record of kind PAGE."""
        self._say([row])

    def forget(self, slots: Iterable[int]) -> None:
        """Queue records of kind EMPTY for the slots that are known to hold a page."""
        with self._changed:
            known = [slot for slot in slots if slot in self._known]
        rows = np.zeros(len(known), self._type)
        rows["kind"] = EMPTY
        rows["slot"] = known
        self._say(list(rows))

    def flush(self) -> None:
        """Wait until everything queued before was written, or could not be."""
        with self._changed:
            target, self._waiting = self._said, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._written >= target)

    def close(self, in_order: Sequence[int]) -> None:
        """Write the rest and a checkpoint that begins with these slots; stop. Idempotent."""
        if self._closing:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        first = {slot: at for at, slot in enumerate(in_order)}
        rows = sorted(self._known.values(), key=lambda row: first.get(int(row["slot"]), len(first)))
        try:
            if self._broken:
                self._flush_slabs(rows)
            self._files.checkpoint(np.array(rows, self._type))
        except OSError as error:
            self._fail(error)
        self._files.close()

    def _say(self, rows: list[np.void]) -> None:
        if not rows:
            return
        with self._changed:
            for row in rows:
                if row["kind"] == PAGE:
                    self._known[int(row["slot"])] = row
                else:
                    self._known.pop(int(row["slot"]), None)
            self._queue += rows
            self._said += len(rows)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._write_groups()
        finally:
            with self._changed:  # whoever waits must not wait for a thread that is gone
                self._written = self._said
                self._changed.notify_all()

    def _write_groups(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                self._changed.wait_for(lambda: self._waiting or self._closing, timeout=self._group_s)
                rows, self._queue = self._queue, []
                known = list(self._known.values())
                self._waiting = False
            if not rows:
                return
            self._write(rows, known)
            with self._changed:
                self._written += len(rows)
                self._changed.notify_all()

    def _write(self, rows: list[np.void], known: list[np.void]) -> None:
        """Write down one group; `known` is what the index says with it."""
        pages = [row for row in rows if row["kind"] == PAGE]
        if self._failed_in_a_row >= MOST_FAILURES:
            return
        try:
            self._flush_slabs(pages)
            if self._broken or len(rows) > self._files.room:
                self._files.checkpoint(np.array(known, self._type))
            else:
                self._files.append(np.array(rows, self._type))
        except OSError as error:
            self._fail(error)
            return
        self._broken, self._failed_in_a_row = False, 0
        self.records += len(rows)
        if self._flush:
            self.flushed_pages += len(pages)

    def _flush_slabs(self, pages: Sequence[np.void]) -> None:
        if self._flush:
            for fd in {self._slab_of(int(row["slot"])) for row in pages}:
                self._calls.flush(fd)

    def _fail(self, error: OSError) -> None:
        self.failures += 1
        self._failed_in_a_row += 1
        self._broken = True
        if self.failures == 1:
            _log.warning(
                "the index of the pages on disk cannot be written (%s): "
                "what is computed now is not there for the next process. Check the disk below nvme_path",
                error,
            )
