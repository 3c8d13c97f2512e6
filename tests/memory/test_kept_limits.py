"""Pages that outlive their store: how much they may take on disk, the lock, who may read."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from kept_pages import (
    GEOMETRY,
    LAYOUT,
    found,
    key_of,
    losses,
    on_disk_bytes,
    opened,
    put,
    put_chain,
)

from tokenvm.errors import LimitTooSmall, StorageError
from tokenvm.memory.kept_size import kept_capacity, limit_for
from tokenvm.memory.page_index import FileCalls
from tokenvm.vocab import SlotId


def test_the_limit_holds_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, most = limit_for(8, GEOMETRY), [0]

    class Watched(FileCalls):
        def write(self, fd: int, data: bytes, offset: int) -> None:
            super().write(fd, data, offset)
            most[0] = max(most[0], on_disk_bytes(tmp_path))

    really = os.posix_fallocate

    def reserve(fd: int, offset: int, nbytes: int) -> None:
        really(fd, offset, nbytes)
        most[0] = max(most[0], on_disk_bytes(tmp_path))

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    for turn in range(3):
        store = opened(tmp_path, limit_bytes=limit, calls=Watched())
        for page in range(40):
            put(store, page % 8, 1 + page + turn)
        store.register.flush()
        assert on_disk_bytes(tmp_path) <= limit
        store.close()
    assert store.capacity * LAYOUT.page_bytes < most[0] <= limit


def test_less_and_more_room_keep_what_fits(tmp_path: Path) -> None:
    store = opened(tmp_path, pages=8)
    put_chain(store, 8)
    store.close()
    less = opened(tmp_path, pages=5, slab_pages=None)
    assert less.capacity == 4
    assert found(less) == {0: 1, 1: 2, 2: 3, 3: 4}
    assert losses(less) == {"beyond_pages": 4}
    assert on_disk_bytes(tmp_path) <= limit_for(5, GEOMETRY)
    less.close()
    more = opened(tmp_path, pages=13, slab_pages=None)
    assert (more.capacity, more.slab_pages) == (12, 4)
    assert len(found(more)) == 4
    put(more, 11, 50)
    more.close()
    tiny = opened(tmp_path, pages=2, slab_pages=None)
    assert tiny.register.found == []
    assert on_disk_bytes(tmp_path) <= limit_for(2, GEOMETRY)
    tiny.close()


@pytest.mark.parametrize("pages", [1, 2, 5, 100, 1000, 5000])
def test_capacity_wastes_little_and_never_exceeds_the_limit(pages: int) -> None:
    limit = limit_for(pages, GEOMETRY)
    capacity, slab_pages = kept_capacity(limit, GEOMETRY)
    assert capacity % slab_pages == 0
    assert limit_for(capacity, GEOMETRY) <= limit
    assert capacity > pages * 0.98 - 1


def test_a_limit_that_holds_no_page_names_the_least(tmp_path: Path) -> None:
    least = limit_for(1, GEOMETRY)
    with pytest.raises(LimitTooSmall, match=f"nvme_limit={least}") as caught:
        opened(tmp_path / "none", limit_bytes=least - 1)
    assert caught.value.minimum_bytes == least
    assert not (tmp_path / "none").exists()
    opened(tmp_path, limit_bytes=least, slab_pages=None).close()


def test_who_may_read(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "pages"
    store = opened(folder)
    put_chain(store, 5)
    store.register.flush()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    store.close()


def test_two_writers_are_told_apart(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(StorageError, match=f"process {os.getpid()} keeps its pages.*nvme_read_only"):
        opened(tmp_path)
    put_chain(store, 2)
    store.close()
    again = opened(tmp_path)
    assert len(found(again)) == 2
    again.close()


def test_a_killed_writer_leaves_no_lock_and_all_that_was_flushed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from kept_pages import *\n"
        "store = opened(Path(sys.argv[1])); put_chain(store, 3); store.register.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    again = opened(tmp_path)
    assert found(again) == {0: 1, 1: 2, 2: 3}
    again.close()


def test_a_reader_locks_nobody_out_and_changes_nothing(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    put_chain(writer, 3)
    writer.register.flush()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    reader = opened(tmp_path, read_only=True)
    assert found(reader) == {0: 1, 1: 2, 2: 3}
    reader.ensure(8)
    reader.register.remember(SlotId(4), key_of(9), key_of(0))
    reader.register.forget([SlotId(0)])
    reader.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    writer.close()


def test_a_reader_needs_something_to_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="start the process that writes there"):
        opened(tmp_path, read_only=True)
    assert list(tmp_path.iterdir()) == []
