"""The two index files of a folder: which one is current, what it says, and how it is written."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenvm.memory.page_format import (
    HEAD_BYTES,
    NO_HEAD,
    PAGE,
    Geometry,
    Head,
    Records,
    Verdict,
    index_file_bytes,
    read_head,
    read_records,
    record_type,
    seal_records,
)

INDEX_NAMES = ("index-0", "index-1")
MOST_SKIPPED = 1 << 32
"""A checkpoint skips fewer generations than this, at random: what one that failed left behind is of none to come."""

_READ_BYTES = 64 << 20
"""Records are read in stretches of at most this."""


class FileCalls:
    """How an index reaches the disk. A test passes calls that fail, or that forget what was not flushed."""

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of it; OSError where that fails."""
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written

    def flush(self, fd: int) -> None:
        """Return once what was written survives the loss of power; OSError where that fails."""
        os.fdatasync(fd)


@dataclass(frozen=True, slots=True)
class Contents:
    """What the index files of a folder say. `pages`: one record for each slot that holds a page, in order of number.

    `head` means something where there is a `current` file, else that is -1. `beyond_pages` lie in slots that were not
    asked for. BLANK: there is no index.
    """

    verdict: Verdict
    head: Head
    current: int
    pages: Records
    damaged_records: int = 0
    beyond_pages: int = 0


def read_index(folder: Path, geometry: Geometry | None = None, most_slots: int = 1 << 24) -> Contents:
    """Read what the current index file says, without trusting it; of slots below `most_slots` only.

    With `geometry`, an index of any other is FOREIGN and its records are not read. OSError where a file that is there
    cannot be read.
    """
    heads = [_head_of(folder / name) for name in INDEX_NAMES]
    good = [at for at, (verdict, _) in enumerate(heads) if verdict is Verdict.GOOD]
    if not good:
        order = (Verdict.FOREIGN, Verdict.DAMAGED, Verdict.BLANK)
        worst = next(verdict for verdict in order if verdict in [found for found, _ in heads])
        return Contents(worst, NO_HEAD, -1, np.zeros(0, record_type(1)))
    current = max(good, key=lambda at: heads[at][1].generation)
    head = heads[current][1]
    if geometry is not None and head.geometry != geometry:
        return Contents(Verdict.FOREIGN, head, current, np.zeros(0, record_type(head.geometry.layers)))
    pages, damaged, beyond = _read_pages(folder / INDEX_NAMES[current], head, most_slots)
    return Contents(Verdict.GOOD, head, current, pages, damaged, beyond)


def _head_of(path: Path) -> tuple[Verdict, Head]:
    try:
        fd = open_regular(path)
    except FileNotFoundError:
        return Verdict.BLANK, NO_HEAD
    try:
        size = os.fstat(fd).st_size
        verdict, head = read_head(os.pread(fd, HEAD_BYTES, 0)) if size else (Verdict.BLANK, NO_HEAD)
    finally:
        os.close(fd)
    if verdict is Verdict.GOOD and size != head.file_bytes:
        return Verdict.DAMAGED, NO_HEAD
    return verdict, head


def _read_pages(path: Path, head: Head, most_slots: int) -> tuple[Records, int, int]:
    """Return the latest record of each slot that holds a page, how many are damaged, and how many slots too many."""
    kind = record_type(head.geometry.layers)
    stretch = max(1, _READ_BYTES // kind.itemsize)
    pages, damaged = np.zeros(0, kind), 0
    beyond: set[int] = set()
    fd = open_regular(path)
    try:
        for first in range(0, head.places, stretch):
            count = min(stretch, head.places - first)
            chunk = os.pread(fd, count * kind.itemsize, HEAD_BYTES + first * kind.itemsize)
            rows, bad = read_records(np.frombuffer(chunk, np.uint8), first, head)
            damaged += bad
            far = rows["slot"] >= most_slots
            beyond.update(rows["slot"][far & (rows["kind"] == PAGE)].tolist())
            rows = np.concatenate([pages, rows[~far]])
            rows = _latest(rows, rows["slot"])
            pages = rows[rows["kind"] == PAGE]
    finally:
        os.close(fd)
    return _latest(pages, np.ascontiguousarray(pages["key"]).view("S16").ravel()), damaged, len(beyond)


def _latest(rows: Records, by: np.ndarray) -> Records:
    """Return of rows that are alike the one of the highest number, all in order of number."""
    _, at = np.unique(by[::-1], return_index=True)
    return rows[np.sort(len(rows) - 1 - at)]


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file of the folder that is a file indeed, not a link to one or a device; OSError where it is not."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path} is not a file")
    return fd


class IndexFiles:
    """The writer's side: both files at their full size. One thread at a time.

    `contents` is what was read of them. A checkpoint comes first; then records may be appended while there is `room`.
    """

    def __init__(
        self,
        folder: Path,
        geometry: Geometry,
        slab_pages: int,
        capacity: int,
        contents: Contents,
        *,
        flush: bool,
        calls: FileCalls,
    ) -> None:
        self._head = Head(geometry, slab_pages, capacity, max(1, contents.head.generation), 0)
        self._flush = flush
        self._calls = calls
        self._nbytes = index_file_bytes(geometry, capacity)
        self._places = 0
        self._current = contents.current if contents.current >= 0 else 1
        self.checkpoints = 0
        flags = os.O_RDWR | os.O_CREAT
        self._fds: list[int] = []
        try:
            for name in INDEX_NAMES:
                self._fds.append(open_regular(folder / name, flags))
        except BaseException:
            self.close()
            raise

    @property
    def room(self) -> int:
        """Records that may be appended before the next checkpoint."""
        return self._head.places - self._places

    def checkpoint(self, pages: Records) -> None:
        """Write one record for each page into the other file and make it the current one.

        `pages` are in the order in which they should be given up. OSError where it fails; then the file that was
        current still is, and nothing more may be appended until a checkpoint has succeeded.
        """
        generation, other = self._head.generation + 1 + secrets.randbelow(MOST_SKIPPED), 1 - self._current
        self._places = self._head.places
        fd = self._fds[other]
        self._blank(fd)
        head = Head(self._head.geometry, self._head.slab_pages, self._head.capacity, generation, len(pages))
        rows = _numbered(pages, 0, generation)
        self._calls.write(fd, rows.tobytes(), HEAD_BYTES)
        self._sync(fd)
        self._calls.write(fd, head.pack(), 0)
        self._sync(fd)
        self._head, self._current, self._places = head, other, len(pages)
        self.checkpoints += 1
        if os.fstat(self._fds[1 - other]).st_size != self._nbytes:
            self._blank(self._fds[1 - other])

    def append(self, records: Records) -> None:
        """Write records behind those that are there. OSError where it fails; then none of them counts."""
        assert len(records) <= self.room, f"IndexFiles.append: {len(records)} records, room for {self.room}"
        rows = _numbered(records, self._places, self._head.generation)
        offset = HEAD_BYTES + self._places * rows.dtype.itemsize
        self._calls.write(self._fds[self._current], rows.tobytes(), offset)
        self._sync(self._fds[self._current])
        self._places += len(records)

    def close(self) -> None:
        """Close both files; idempotent."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def _blank(self, fd: int) -> None:
        """Make the file's head blank, and the file as long as it has to be."""
        if os.fstat(fd).st_size != self._nbytes:
            os.ftruncate(fd, 0)
            os.posix_fallocate(fd, 0, self._nbytes)
        self._calls.write(fd, bytes(HEAD_BYTES), 0)
        self._sync(fd)

    def _sync(self, fd: int) -> None:
        if self._flush:
            self._calls.flush(fd)


def _numbered(records: Records, first: int, generation: int) -> Records:
    rows = np.array(records, records.dtype)
    rows["number"] = np.arange(first + 1, first + 1 + len(rows), dtype=np.uint64)
    rows["generation"] = generation
    seal_records(rows)
    return rows


def remove_index(folder: Path) -> None:
    """Delete both files."""
    for name in INDEX_NAMES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder / name)
