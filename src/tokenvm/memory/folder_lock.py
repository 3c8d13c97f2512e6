"""Who writes to a folder of pages: one process, until it ends in whatever way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from tokenvm.errors import StorageError
from tokenvm.memory.page_index import open_regular

LOCK_NAME = "lock"
_TAKEN = (errno.EAGAIN, errno.EACCES)


class FolderLock:
    """Holds the folder's lock from birth until `release`; the kernel lets go of it when the process dies.

    Raises StorageError where another process, or another LLM of this one, has it; and where the folder has no locks.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._fd = open_regular(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise StorageError(
                f"cannot lock {folder} ({error.strerror or error}): set nvme_path to a folder you own"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(self._fd)
            raise _refusal(folder, error) from error

    def release(self) -> None:
        """Let go; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def owner_of(folder: Path) -> int:
    """Return the id of the process that writes to a folder now, 0 where none does."""
    try:
        fd = open_regular(folder / LOCK_NAME)
    except OSError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return 0
    except OSError as error:
        return _written_in(fd) if error.errno in _TAKEN else 0
    finally:
        os.close(fd)


def _written_in(fd: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(os.pread(fd, 32, 0).decode().strip())
    return -1


def _refusal(folder: Path, error: OSError) -> StorageError:
    if error.errno in _TAKEN:
        return StorageError(
            f"process {owner_of(folder)} keeps its pages in {folder}: wait until it ends, set another nvme_path, "
            "or set nvme_read_only=true to read its pages and write none"
        )
    return StorageError(f"cannot lock {folder} ({error.strerror}): set nvme_path to a folder on a local disk")
