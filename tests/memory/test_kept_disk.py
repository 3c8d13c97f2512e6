"""Pages that outlive their store: what is found again, what is not and why, limits, the lock, who may read."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kept_pages import (
    GEOMETRY,
    LAYOUT,
    THEIRS,
    dead,
    found,
    key_of,
    on_disk_bytes,
    opened,
    put,
    put_chain,
)

from tokenvm.errors import LimitTooSmall, StorageError
from tokenvm.memory.kept_disk import KeptDiskStore
from tokenvm.memory.kept_folder import prune_folder
from tokenvm.memory.kept_size import kept_capacity, limit_for
from tokenvm.memory.page_format import Geometry
from tokenvm.memory.page_index import FileCalls
from tokenvm.memory.page_journal import MOST_FAILURES
from tokenvm.vocab import SlotId


def losses(store: KeptDiskStore) -> dict[str, int]:
    return {
        name: count
        for name, count in store.register.as_dict().items()
        if count
        and name.endswith(("_pages", "damaged_records"))
        and name.split("_")[0] not in ("warm", "kept", "flushed")
    }


@pytest.mark.parametrize("orderly", [True, False])
@pytest.mark.parametrize("flush", [True, False])
def test_what_was_remembered_is_found_heads_first(tmp_path: Path, orderly: bool, flush: bool) -> None:
    store = opened(tmp_path, flush=flush)
    put_chain(store, 5)
    store.register.flush()
    assert store.register.as_dict()["flushed_pages"] == (5 if flush else 0)
    (KeptDiskStore.close if orderly else dead)(store)
    again = opened(tmp_path)
    assert found(again) == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5}
    assert [page.key for page in again.register.found] == [key_of(page) for page in range(1, 6)]
    assert [again.register.found[at].key[0] for at in again.register.idle_order] == [5, 4, 3, 2, 1], (
        "tails go first"
    )
    assert losses(again) == {}
    again.close()


def test_what_was_forgotten_or_replaced_is_not_found(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put_chain(store, 4)
    store.register.forget([SlotId(3), SlotId(7)])
    put(store, 2, 9, parent=2)
    dead(store)
    again = opened(tmp_path)
    assert found(again) == {0: 1, 1: 2, 2: 9}
    again.close()


def test_a_page_behind_one_that_is_gone_is_an_orphan(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put_chain(store, 5)
    store.register.forget([SlotId(2)])
    dead(store)
    again = opened(tmp_path)
    assert found(again) == {0: 1, 1: 2}
    assert losses(again) == {"orphan_pages": 2}
    again.close()
    third = opened(tmp_path)
    assert losses(third) == {}, "they were reclaimed"
    third.close()


def test_the_index_goes_on_over_many_checkpoints(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for turn in range(160):
        put(store, turn % 8, 1 + turn)
        if turn % 5 == 0:
            store.register.flush()
    dead(store)
    assert store._files is not None
    assert store._files.checkpoints > 1
    again = opened(tmp_path)
    assert found(again) == {turn % 8: 1 + turn for turn in range(152, 160)}
    again.close()


def test_order_of_giving_up_survives(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for page in (1, 2, 3):
        put(store, page, page)
    store.register.close([SlotId(3), SlotId(1), SlotId(2)])
    store.close()
    again = opened(tmp_path)
    assert [again.register.found[at].key[0] for at in again.register.idle_order] == [3, 1, 2]
    again.close()


def test_another_model_finds_nothing_and_its_pages_take_the_room(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put_chain(store, 4)
    store.close()
    other = opened(tmp_path, fingerprint=THEIRS)
    assert other.register.found == []
    assert losses(other) == {"foreign_pages": 4}
    put(other, 0, 7)
    other.close()
    back = opened(tmp_path)
    assert back.register.found == []
    back.close()


def test_another_geometry_or_version_is_reclaimed_whole(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put_chain(store, 4)
    store.close()
    head = (tmp_path / "index-0").read_bytes()[:4096]
    assert head[:8] == b"TVMPAGES" or (tmp_path / "index-1").read_bytes()[:8] == b"TVMPAGES"
    keep = store._keep
    from tokenvm.memory.layout import PageLayout

    other_layout = PageLayout(layers=2, part_bytes=4096)
    limit = limit_for(8, Geometry(2, 4096, 4096, "none"))
    other = KeptDiskStore(tmp_path, limit, other_layout, keep, direct=False)
    assert losses(other) == {"foreign_pages": 4}
    assert on_disk_bytes(tmp_path) <= limit
    other.close()


def test_pages_that_are_too_old_are_not_found(tmp_path: Path) -> None:
    now = [1000.0]
    store = opened(tmp_path, now_s=lambda: now[0])
    put(store, 0, 1)
    now[0] = 1050.0
    put(store, 1, 2, parent=1)
    put(store, 2, 3)
    store.close()
    now[0] = 1105.0
    again = opened(tmp_path, ttl_s=100.0, now_s=lambda: now[0])
    assert found(again) == {2: 3}
    assert losses(again) == {"expired_pages": 1, "orphan_pages": 1}
    assert again.register.expired_before() == 1005.0
    again.close()


@pytest.mark.parametrize("harm", ["missing", "short", "long", "link", "folder-wide"])
def test_a_slab_that_is_not_whole_holds_no_pages(tmp_path: Path, harm: str) -> None:
    store = opened(tmp_path)
    put_chain(store, 4)
    put(store, 5, 9)
    store.close()
    slab = tmp_path / "slab-00001"
    size = slab.stat().st_size
    if harm == "missing":
        slab.unlink()
    elif harm == "link":
        slab.rename(tmp_path / "aside")
        slab.symlink_to(tmp_path / "aside")
    elif harm == "folder-wide":
        (tmp_path / "slab-00007").write_bytes(bytes(100))
        (tmp_path / "other").write_bytes(b"not ours")
        slab.unlink()
    else:
        os.truncate(slab, size - 1 if harm == "short" else size + 4096)
    again = opened(tmp_path)
    assert found(again) == {0: 1, 1: 2, 2: 3, 3: 4}
    assert losses(again) == {"missing_pages": 1}
    put(again, 5, 8)
    again.close()
    assert not (tmp_path / "slab-00007").exists()
    assert (tmp_path / "other").exists() == (harm == "folder-wide"), "what is not ours is left alone"
    third = opened(tmp_path)
    assert found(third)[5] == 8
    third.close()


def test_a_damaged_head_falls_back_and_two_start_anew(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put_chain(store, 3)
    dead(store)
    current = max(("index-0", "index-1"), key=lambda name: (tmp_path / name).read_bytes()[48:56])
    flip(tmp_path / current, 48)
    again = opened(tmp_path)
    assert set(found(again)) <= {0, 1, 2}, "older, never wrong"
    put_chain(again, 3)
    again.close()
    for name in ("index-0", "index-1"):
        (tmp_path / name).write_bytes(b"x" * 5000)
    third = opened(tmp_path)
    assert third.register.found == []
    assert losses(third)["damaged_records"] == 1
    put(third, 0, 5)
    third.close()
    fourth = opened(tmp_path)
    assert found(fourth) == {0: 5}
    fourth.close()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


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


def test_ten_thousand_pages_are_read_as_one_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, at, n: os.ftruncate(fd, n))
    store = opened(tmp_path, pages=10_000, slab_pages=10_000)
    store.ensure(1)
    parent = b""
    rng = np.random.default_rng(0)
    for slot in range(10_000):
        key = rng.bytes(16)
        store.register.remember(SlotId(slot), key, parent if slot % 100 else b"")
        parent = key
    store.close()
    again = opened(tmp_path, pages=10_000, slab_pages=10_000)
    assert len(again.register.found) == 10_000
    assert losses(again) == {}
    again.close()
