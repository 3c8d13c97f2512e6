"""Pages that outlive their store: writes that fail, checkpoints that die, power that goes, disks that fill up."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from kept_pages import (
    dead,
    found,
    opened,
    put,
    put_chain,
)

from tokenvm.errors import StorageError
from tokenvm.memory.kept_folder import prune_folder
from tokenvm.memory.page_index import FileCalls
from tokenvm.memory.page_journal import MOST_FAILURES


class Failing(FileCalls):
    """Every write fails from the n-th on."""

    def __init__(self, after: int) -> None:
        self.left = after

    def write(self, fd: int, data: bytes, offset: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().write(fd, data, offset)


@pytest.mark.parametrize("after", range(4))
def test_an_index_that_cannot_be_made_is_said_at_the_start(tmp_path: Path, after: int) -> None:
    with pytest.raises(StorageError, match="set nvme_path"):
        opened(tmp_path, calls=Failing(after))
    opened(tmp_path).close()


@pytest.mark.parametrize("after", range(4, 12))
def test_an_index_that_cannot_be_written_loses_what_comes_and_nothing_else(
    tmp_path: Path, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path, calls=Failing(after))
    for page in range(1, 7):
        put(store, page - 1, page, page - 1)
        store.register.flush()
    assert (store.register.as_dict()["index_failures"] > 0) == (after < 10)
    assert len([1 for record in caplog.records if "cannot be written" in record.message]) == (after < 10)
    store.close()
    again = opened(tmp_path)
    kept = found(again)
    assert kept == {page - 1: page for page in range(1, len(kept) + 1)}
    assert len(kept) >= min(6, after - 4), "what was acknowledged before is there"
    again.close()


@pytest.mark.parametrize("young", range(4))
def test_what_a_checkpoint_left_that_died_before_its_head_never_counts(tmp_path: Path, young: int) -> None:
    now = [1000.0]
    store = opened(tmp_path, now_s=lambda: now[0])
    for slot in range(4):
        now[0] = 2000.0 if slot == young else 1000.0
        put(store, slot, slot + 1)
    store.close()
    with pytest.raises(StorageError, match="set nvme_path"):
        opened(tmp_path, calls=Failing(2))
    assert prune_folder(tmp_path, 1500.0) == (3, 1)
    again = opened(tmp_path)
    assert found(again) == {young: young + 1}
    again.close()


class Moody(FileCalls):
    """Every call fails while it is `down`."""

    down = False

    def write(self, fd: int, data: bytes, offset: int) -> None:
        if self.down:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().write(fd, data, offset)


def test_an_index_that_could_not_be_written_for_a_while_is_whole_in_the_end(tmp_path: Path) -> None:
    calls = Moody()
    store = opened(tmp_path, calls=calls)
    calls.down = True
    for page in range(1, 7):
        put(store, page - 1, page, page - 1)
        store.register.flush()
    assert store.register.as_dict()["index_failures"] == MOST_FAILURES
    calls.down = False
    store.close()
    again = opened(tmp_path)
    assert len(found(again)) == 6
    again.close()


class Forgetful(FileCalls):
    """Loses what was written and not flushed, once power is gone."""

    def __init__(self) -> None:
        self.before: dict[int, list[tuple[int, bytes]]] = {}

    def write(self, fd: int, data: bytes, offset: int) -> None:
        self.before.setdefault(fd, []).append((offset, os.pread(fd, len(data), offset)))
        super().write(fd, data, offset)

    def flush(self, fd: int) -> None:
        self.before.pop(fd, None)
        super().flush(fd)

    def lose_power(self) -> None:
        for fd, writes in self.before.items():
            for offset, data in reversed(writes):
                os.pwrite(fd, data, offset)


def test_what_was_acknowledged_survives_the_loss_of_power(tmp_path: Path) -> None:
    calls = Forgetful()
    store = opened(tmp_path, calls=calls)
    put_chain(store, 5)
    store.register.flush()
    flushed = store.register.as_dict()["flushed_pages"]
    calls.lose_power()
    dead(store)
    again = opened(tmp_path)
    assert len(found(again)) == flushed == 5
    again.close()


def test_a_full_disk_shows_at_a_slabs_birth_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    put(store, 0, 1)

    def refuse(fd: int, offset: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StorageError, match="cannot reserve"):
        store.ensure(8)
    monkeypatch.undo()
    assert not (tmp_path / "slab-00001").exists()
    put(store, 7, 2)
    store.close()
    again = opened(tmp_path)
    assert found(again) == {0: 1, 7: 2}
    again.close()
