"""The disk tier: slabs of pages in private files that vanish with the process. `kept_disk.py` has those that stay."""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import resource
import secrets
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenvm.errors import LimitTooSmall, StorageError
from tokenvm.memory.codec import Codec, Identity
from tokenvm.memory.layout import ALIGNMENT_BYTES, PageLayout
from tokenvm.memory.tier import Places
from tokenvm.vocab import Tier

Direct = bool | Literal["auto"]

LAYER_BYTES = 2 << 20
"""A slab holds as many pages as fit this much of each layer, unless told: two of the longest reads."""

MOST_SLABS = 256
"""Slabs of a whole limit are made longer, unless told, so that they are no more files than this."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_log = logging.getLogger("tokenvm.memory")


class DiskStore:
    """Pages in files below `path`, at most `limit_bytes` of them.

    A slab is one file of `slab_pages` slots, layer-major: part (slot, layer) lies at
    `(layer * slab_pages + slot % slab_pages) * part_stride`, so one layer of consecutive slots is one read.
    With a codec each layer has two runs: `far_bytes` of every slot, where encoded parts are, then the rest of
    every slot, where the ends of those are that did not fit. So a slot always holds a page, whatever its bytes.
    The last slab is smaller where the limit ends. Files have no name (mode 0600, directory 0700 when made
    here), so nothing is left behind even by a killed process; their space is reserved when they are made.
    `high_water_bytes` are reserved on disk: slabs are never given back before `close`.
    `direct` asks for O_DIRECT; "auto" takes it where the directory can do it. Raises LimitTooSmall below one
    page, and StorageError where `path` cannot be written.
    """

    tier = Tier.DISK

    def __init__(
        self,
        path: Path,
        limit_bytes: int,
        layout: PageLayout,
        direct: Direct = "auto",
        slab_pages: int | None = None,
        codec: Codec | None = None,
    ) -> None:
        if limit_bytes < layout.page_bytes:
            raise LimitTooSmall(
                f"nvme_limit of {limit_bytes} bytes holds no page: "
                f"type nvme_limit={layout.page_bytes} or more, or 0",
                layout.page_bytes,
            )
        capacity = limit_bytes // layout.page_bytes
        self._set_up(
            path, layout, codec, capacity, min(capacity, slab_pages or pages_of_slab(layout, capacity))
        )
        self.direct = self._open_directory(direct)

    def _set_up(
        self, path: Path, layout: PageLayout, codec: Codec | None, capacity: int, slab_pages: int
    ) -> None:
        self.path = path
        self.layout = layout
        self.capacity = capacity
        self.slab_pages = slab_pages
        self.checksums = np.zeros((self.capacity, layout.layers), np.uint32)
        self.packed = np.zeros((self.capacity, layout.layers), np.uint8)
        self.far_bytes = (codec or Identity()).stored_bytes(layout.part_stride)
        self.high_water_bytes = 0
        self._fds = np.full(-(-self.capacity // self.slab_pages), -1, np.int32)
        self._ready_slots = 0  # all slots below have space

    @property
    def packs(self) -> bool:
        """See `TierStore.packs`."""
        return self.far_bytes < self.layout.part_stride

    @property
    def ensured(self) -> int:
        """See `TierStore.ensured`."""
        return self._ready_slots

    def ensure(self, slots: int) -> None:
        """See `TierStore.ensure`: makes slabs as needed."""
        if slots > self.capacity:
            raise StorageError(
                f"the disk tier holds {self.capacity} pages and {slots} are needed: "
                f"raise nvme_limit to {slots * self.layout.page_bytes} bytes"
            )
        while self._ready_slots < slots:
            slab = self._ready_slots // self.slab_pages
            if self._fds[slab] < 0:
                self._fds[slab] = self._make_slab(slab)
                self.high_water_bytes += self._slab_bytes(slab)
            self._ready_slots += self._pages_of(slab)

    def places(self, slots: ArrayLike, layer: ArrayLike) -> Places:
        """See `TierStore.places`."""
        slot = np.asarray(slots, np.int64)
        slab = slot // self.slab_pages
        pages = np.minimum(self.slab_pages, self.capacity - slab * self.slab_pages)
        stride, far = self.layout.part_stride, self.far_bytes
        place, tail = offsets_in_slab(slot % self.slab_pages, layer, pages, stride, far)
        kind, fd = np.zeros(place.shape, np.uint8), np.broadcast_to(self._fds[slab], place.shape)
        return Places(kind, fd, place.astype(np.uint64), tail.astype(np.uint64), far)

    def close(self) -> None:
        """See `TierStore.close`: the files vanish."""
        for fd in self._fds[self._fds >= 0].tolist():
            os.close(fd)
        self._fds[:] = -1
        self._ready_slots = 0

    def _pages_of(self, slab: int) -> int:
        return min(self.slab_pages, self.capacity - slab * self.slab_pages)

    def _slab_bytes(self, slab: int) -> int:
        return self._pages_of(slab) * self.layout.page_bytes

    def _new_file(self, slab: int) -> int:
        """Open a new file for a slab; OSError where that fails."""
        return nameless_file(self.path)

    def _give_up(self, slab: int, fd: int) -> None:
        """The file could not be made as long as it has to be."""
        os.close(fd)

    def _open_directory(self, direct: Direct) -> bool:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = nameless_file(self.path)
        except OSError as error:
            advice = too_many_files(error) or "set nvme_path to a directory you own, or nvme_limit=0"
            raise StorageError(f"cannot write in {self.path} ({error.strerror}): {advice}") from error
        try:
            return direct is not False and self._try_direct(fd, required=direct is True)
        finally:
            os.close(fd)

    def _try_direct(self, fd: int, required: bool) -> bool:
        if direct_works(fd):
            return True
        if required:
            raise StorageError(
                f"{self.path} does not do direct I/O: set nvme_path to a local disk, or direct='auto'"
            )
        _log.warning("%s does not do direct I/O: pages go through the page cache, which is slower", self.path)
        return False

    def _make_slab(self, slab: int) -> int:
        nbytes = self._slab_bytes(slab)
        fd = -1
        try:
            fd = self._new_file(slab)
            os.posix_fallocate(fd, 0, nbytes)
            self._set_mode(fd)
        except OSError as error:
            if fd >= 0:
                self._give_up(slab, fd)
            raise self._no_slab(error, nbytes) from error
        return fd

    def _set_mode(self, fd: int) -> None:
        if self.direct:
            set_direct(fd)
        else:  # the cache holds no more than what was asked for
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def _no_slab(self, error: OSError, nbytes: int) -> StorageError:
        if advice := too_many_files(error):
            return StorageError(f"cannot make a file in {self.path} ({error.strerror}): {advice}")
        free = shutil.disk_usage(self.path).free
        advice = (
            f"free some space, set nvme_limit={self.high_water_bytes or 0}, or set nvme_path to another disk"
            if error.errno in _NO_SPACE
            else "set nvme_path to a directory on a local disk"
        )
        return StorageError(
            f"cannot reserve {nbytes} bytes in {self.path} "
            f"({error.strerror}; {free} bytes are free there): {advice}"
        )


def offsets_in_slab(
    slot: NDArray[np.int64], layer: ArrayLike, slab_pages: ArrayLike, stride: int, far: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Say where parts lie in a slab of `slab_pages`: the first `far` bytes, and the rest of those that need it."""
    pages = np.asarray(slab_pages, np.int64)
    run = np.asarray(layer, np.int64) * pages * stride
    return run + slot * far, run + pages * far + slot * (stride - far)


def pages_of_slab(layout: PageLayout, capacity: int) -> int:
    """Return how many pages a slab of a store of so many pages has, if nobody says."""
    return min(capacity, max(1, LAYER_BYTES // layout.part_stride, -(-capacity // MOST_SLABS)))


def too_many_files(error: OSError) -> str:
    """Say what to type where no file can be opened because too many are; "" where that is not the reason."""
    if error.errno == errno.EMFILE:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"this process may open {most} files: type `ulimit -n {most + MOST_SLABS}` and start it again"
    if error.errno == errno.ENFILE:
        return "the whole machine has too many: end other programs, or raise `sudo sysctl -w fs.file-max=...`"
    return ""


def nameless_file(directory: Path) -> int:
    """Open a new file without a name, mode 0600, that vanishes when closed; OSError where that fails."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(directory, flags | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
    name = directory / f".tokenvm-{secrets.token_hex(8)}"
    fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(name)
    return fd


def set_direct(fd: int) -> None:
    """Turn O_DIRECT on; OSError where the file system refuses."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)


def direct_works(fd: int, writes: bool = True) -> bool:
    """Try one aligned direct write, if it may, and read on an open file."""
    with mmap.mmap(-1, ALIGNMENT_BYTES) as block:
        try:
            set_direct(fd)
            written = not writes or os.pwrite(fd, block, 0) == ALIGNMENT_BYTES
            return written and os.preadv(fd, [block], 0) == ALIGNMENT_BYTES
        except OSError:
            return False
