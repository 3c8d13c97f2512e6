"""The disk tier that outlives its process: named slabs and an index, as docs/page-format.md has them."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from tokenvm.errors import StorageError
from tokenvm.machine import free_disk_bytes
from tokenvm.memory.codec import Codec
from tokenvm.memory.disk import Direct, DiskStore, direct_works
from tokenvm.memory.disk_register import DiskRegister, ReadRegister
from tokenvm.memory.folder_lock import FolderLock
from tokenvm.memory.kept_size import SLAB_NAME, geometry_of_store, kept_capacity, slab_name
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.page_format import Verdict, record_type, unpack_bits
from tokenvm.memory.page_index import (
    INDEX_NAMES,
    Contents,
    FileCalls,
    IndexFiles,
    open_regular,
    read_index,
    remove_index,
)
from tokenvm.memory.page_journal import PageJournal
from tokenvm.memory.recovery import Recovered, recover

_log = logging.getLogger("tokenvm.memory")


@dataclass(frozen=True, slots=True)
class Keep:
    """How pages are kept for the next process.

    Pages of another `fingerprint` (16 bytes), and those written more than `ttl_s` seconds ago (0: never too old), are
    reclaimed. `flush` makes pages survive the loss of power, not only of the process. With `read_only` nothing is
    written. `now_s` is Unix time; `calls` are how the index is written.
    """

    fingerprint: bytes
    ttl_s: float = 0.0
    flush: bool = True
    read_only: bool = False
    now_s: Callable[[], float] = time.time
    calls: FileCalls = field(default_factory=FileCalls)

    def oldest_s(self) -> float:
        """Return the Unix time before which a page is too old, 0 where none is."""
        return self.now_s() - self.ttl_s if self.ttl_s else 0.0


class KeptDiskStore(DiskStore):
    """Pages below `path` that the next process finds: data, index and lock take at most `limit_bytes` of disk.

    Pages of another geometry or version than ours are reclaimed. One writer: the folder is locked until `close`. A
    store that is `read_only` locks nobody out, and has the pages that were there when it was opened.

    Raises LimitTooSmall where no page fits beside the index; StorageError where the path cannot be written, is locked,
    or, if `read_only`, has no pages of this geometry.
    """

    def __init__(
        self,
        path: Path,
        limit_bytes: int,
        layout: PageLayout,
        keep: Keep,
        *,
        direct: Direct = "auto",
        slab_pages: int | None = None,
        codec: Codec | None = None,
    ) -> None:
        begin_s = time.monotonic()
        self._keep = keep
        self._geometry = geometry_of_store(layout, codec)
        self._lock: FolderLock | None = None
        self._files: IndexFiles | None = None
        self._first = False  # nobody kept pages here before
        self._register: ReadRegister | None = None
        with self._undone(path):
            contents = self._take_over(path, limit_bytes, layout, slab_pages, codec)
            self.direct = (
                direct is not False and self._reads_direct()
                if keep.read_only
                else self._open_directory(direct)
            )
            self._open_slabs()
            recovered = self._recover(contents)
            journal = None if keep.read_only else self._start(contents, recovered)
            seconds = time.monotonic() - begin_s
            self._register = self._registered(recovered, seconds, journal)
        _say(path, recovered, seconds)

    @property
    def register(self) -> ReadRegister:
        """What outlives the process."""
        assert self._register is not None, "KeptDiskStore.register: the store was never opened"
        return self._register

    def ensure(self, slots: int) -> None:
        """See `TierStore.ensure`. A store that is only read has its slabs, and gets no others."""
        if not self._keep.read_only:
            super().ensure(slots)

    def close(self) -> None:
        """See `TierStore.close`: the pages stay. Whoever knows their order closes the register before."""
        if self._register is not None:
            self._register.close(())
        elif self._files is not None:
            self._files.close()
        super().close()
        if self._lock is not None:
            self._lock.release()

    def _take_over(
        self, path: Path, limit_bytes: int, layout: PageLayout, slab_pages: int | None, codec: Codec | None
    ) -> Contents:
        """Lock the folder, read its index, and decide how many slots there are."""
        if self._keep.read_only:
            contents = read_index(path, self._geometry)
            if contents.verdict is not Verdict.GOOD:
                raise StorageError(
                    f"{path} has no pages of this model and these settings: start the process that writes there "
                    "first, or leave nvme_read_only out"
                )
            self._set_up(path, layout, codec, contents.head.capacity, contents.head.slab_pages)
            return contents
        kept_capacity(limit_bytes, self._geometry, slab_pages)  # refuses before anything is made
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = FolderLock(path)
        contents = read_index(path, self._geometry, limit_bytes // layout.page_bytes)
        if contents.verdict is Verdict.GOOD and slab_pages in (None, contents.head.slab_pages):
            slab_pages = contents.head.slab_pages
        capacity, slab_pages = kept_capacity(limit_bytes, self._geometry, slab_pages)
        self._set_up(path, layout, codec, capacity, slab_pages)
        return contents

    def _open_slabs(self) -> None:
        """Open the slabs that are whole; delete, if this is the writer, all others."""
        for entry in list(os.scandir(self.path)):
            match = SLAB_NAME.fullmatch(entry.name)
            if match is None:
                continue
            slab = int(match[1])
            fits = slab < len(self._fds) and entry.name == slab_name(slab)
            if fits and self._open_slab(slab):
                self.high_water_bytes += self._slab_bytes(slab)
            elif not self._keep.read_only:
                os.unlink(entry.path)

    def _open_slab(self, slab: int) -> bool:
        """Open one that is there; return whether it is what a slab has to be."""
        try:
            fd = open_regular(self.path / slab_name(slab), os.O_RDONLY if self._keep.read_only else os.O_RDWR)
        except OSError:
            return False
        if os.fstat(fd).st_size != self._slab_bytes(slab):
            os.close(fd)
            return False
        self._set_mode(fd)
        self._fds[slab] = fd
        return True

    def _recover(self, contents: Contents) -> Recovered:
        ours = contents.verdict is Verdict.GOOD and contents.head.slab_pages == self.slab_pages
        pages = contents.pages if ours else np.zeros(0, record_type(self.layout.layers))
        pages = pages[pages["slot"] < self.capacity]
        slots = pages["slot"].astype(np.int64)
        whole = self._fds[slots // self.slab_pages] >= 0
        recovered = recover(pages, self._keep.fingerprint, self._keep.oldest_s(), whole)
        losses = recovered.losses
        losses.damaged_records = contents.damaged_records + (contents.verdict is Verdict.DAMAGED)
        losses.foreign_pages += contents.head.checkpointed if contents.verdict is Verdict.FOREIGN else 0
        if contents.verdict is Verdict.GOOD:
            losses.beyond_pages = contents.beyond_pages + len(contents.pages) - len(pages)
        slots = recovered.pages["slot"].astype(np.int64)
        self.checksums[slots] = recovered.pages["checksums"]
        self.packed[slots] = unpack_bits(recovered.pages["packed"], self.layout.layers)
        return recovered

    def _start(self, contents: Contents, recovered: Recovered) -> PageJournal:
        """Write the first checkpoint of this process; from here on the journal goes on."""
        self._first = contents.verdict is not Verdict.GOOD
        if self._first:
            remove_index(self.path)
        keep = self._keep
        self._files = IndexFiles(
            self.path,
            self._geometry,
            self.slab_pages,
            self.capacity,
            contents,
            flush=keep.flush,
            calls=keep.calls,
        )
        self._files.checkpoint(recovered.pages[list(recovered.idle_order)])
        return PageJournal(
            self._files,
            recovered.pages,
            lambda slot: int(self._fds[slot // self.slab_pages]),
            flush=keep.flush,
            calls=keep.calls,
        )

    def _registered(self, recovered: Recovered, seconds: float, journal: PageJournal | None) -> ReadRegister:
        if journal is None:
            return ReadRegister(recovered, seconds, self._keep.oldest_s)
        return DiskRegister(
            recovered,
            seconds,
            self._keep.oldest_s,
            self,
            self._keep.fingerprint,
            journal,
            self._keep.now_s,
        )

    def _new_file(self, slab: int) -> int:
        return open_regular(self.path / slab_name(slab), os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def _give_up(self, slab: int, fd: int) -> None:
        super()._give_up(slab, fd)
        with contextlib.suppress(OSError):
            os.unlink(self.path / slab_name(slab))

    def _reads_direct(self) -> bool:
        """Whether a folder that is only read can do direct I/O: nothing is written there to find out."""
        fd = open_regular(self.path / INDEX_NAMES[0])
        try:
            return direct_works(fd, writes=False)
        finally:
            os.close(fd)

    @contextmanager
    def _undone(self, path: Path) -> Iterator[None]:
        """Let go of all that was taken where opening fails."""
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):
                if self._first:
                    remove_index(path)
            if hasattr(self, "_fds"):
                self.close()
            elif self._lock is not None:
                self._lock.release()
            if isinstance(error, OSError):
                raise StorageError(
                    f"cannot keep pages in {path} ({error.strerror or error}; {free_disk_bytes(path)} bytes are free "
                    "there): free some space, or set nvme_path to a folder you own on a local disk"
                ) from error
            raise


def _say(path: Path, recovered: Recovered, seconds: float) -> None:
    losses = recovered.losses
    gone = {name.replace("_", " "): count for name, count in asdict(losses).items() if count}
    _log.info("%s holds %d pages for this model, found in %.3f s", path, len(recovered.pages), seconds)
    if gone:
        _log.info("%s: reclaimed %s", path, ", ".join(f"{count} {name}" for name, count in gone.items()))
