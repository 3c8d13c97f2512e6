"""The disk tier: privacy, limits, slabs, direct I/O, and what it says when the world refuses."""

import errno
import logging
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tokenvm.errors import LimitTooSmall, StorageError
from tokenvm.memory import disk
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.layout import PageLayout

LAYOUT = PageLayout(layers=2, part_bytes=4096)
PAGE = LAYOUT.page_bytes


def on_disk_bytes(store: DiskStore) -> int:
    fds = np.unique(store.places(np.arange(store.capacity), 0).fd)
    return sum(os.fstat(fd).st_blocks * 512 for fd in fds.tolist() if fd >= 0)


def test_a_slab_is_layer_major(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 7 * PAGE, LAYOUT, slab_pages=3)
    store.ensure(7)
    places = store.places(np.arange(7)[None, :], np.arange(2)[:, None])
    parts = places.place // np.uint64(LAYOUT.part_stride)
    assert parts.tolist() == [[0, 1, 2, 0, 1, 2, 0], [3, 4, 5, 3, 4, 5, 1]], "the last slab has one page"
    fds = places.fd.tolist()
    assert fds[0] == fds[1]
    assert len(set(fds[0])) == 3
    store.close()


def test_slabs_are_long_enough_for_the_longest_read(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 10_000 * PAGE, LAYOUT)
    assert store.slab_pages * LAYOUT.part_stride == disk.LAYER_BYTES
    store.close()


@pytest.mark.parametrize("layout", [LAYOUT, PageLayout(layers=30, part_bytes=24_576)])
def test_a_great_limit_makes_longer_slabs_rather_than_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: PageLayout
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, offset, nbytes: None)
    shortest = disk.LAYER_BYTES // layout.part_stride
    knee = shortest * disk.MOST_SLABS
    open_before = len(os.listdir("/proc/self/fd"))
    for pages in (knee - 1, knee, knee + 1, 2 * knee, (64 << 30) // layout.page_bytes):
        store = DiskStore(tmp_path, pages * layout.page_bytes, layout)
        store.ensure(store.capacity)
        slabs = len(os.listdir("/proc/self/fd")) - open_before
        assert disk.MOST_SLABS // 2 < slabs <= disk.MOST_SLABS
        assert (store.slab_pages == shortest) == (pages <= knee)
        assert store.high_water_bytes == pages * layout.page_bytes
        store.close()


def test_longer_slabs_keep_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "LAYER_BYTES", LAYOUT.part_stride)
    pages = 2 * disk.MOST_SLABS + 3
    store = DiskStore(tmp_path, pages * PAGE, LAYOUT)
    for slots in (1, 4, pages - 1, pages):
        store.ensure(slots)
        assert slots * PAGE <= on_disk_bytes(store) == store.high_water_bytes <= pages * PAGE
    assert store.slab_pages == 3
    store.close()


def test_space_is_reserved_at_birth_and_never_beyond_the_limit(tmp_path: Path) -> None:
    limit = 7 * PAGE + PAGE // 2
    store = DiskStore(tmp_path, limit, LAYOUT, slab_pages=3)
    for slots in (1, 3, 4, 7):
        store.ensure(slots)
        assert slots * PAGE <= on_disk_bytes(store) <= limit
    assert store.high_water_bytes == on_disk_bytes(store) == 7 * PAGE
    store.close()


def test_pages_have_no_name_and_nobody_else_may_read_them(tmp_path: Path) -> None:
    path = tmp_path / "new" / "pages"
    store = DiskStore(path, PAGE, LAYOUT)
    store.ensure(1)
    assert list(path.iterdir()) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    status = os.fstat(int(store.places(0, 0).fd))
    assert (stat.S_IMODE(status.st_mode), status.st_nlink) == (0o600, 0)
    store.close()


def test_nothing_stays_behind_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tokenvm.memory.disk import DiskStore; from tokenvm.memory.layout import PageLayout\n"
        "store = DiskStore(Path(sys.argv[1]), 1 << 20, PageLayout(2, 4096)); store.ensure(100)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_nameless_files_the_name_goes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_really = os.open

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no nameless files")
        return open_really(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    store = DiskStore(tmp_path, PAGE, LAYOUT)
    store.ensure(1)
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(int(store.places(0, 0).fd)).st_nlink == 0
    store.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_says_how_much_is_needed_and_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = DiskStore(tmp_path, 6 * PAGE, LAYOUT, slab_pages=3)
    store.ensure(3)
    fds_before = len(os.listdir("/proc/self/fd"))

    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StorageError) as caught:
        store.ensure(4)
    message = str(caught.value)
    assert f"cannot reserve {3 * PAGE} bytes" in message
    assert str(tmp_path) in message
    assert re.search(r"\d+ bytes are free", message)
    assert f"nvme_limit={3 * PAGE}" in message
    assert len(os.listdir("/proc/self/fd")) == fds_before, "the file that got no room is closed"
    assert store.high_water_bytes == 3 * PAGE
    monkeypatch.undo()
    store.ensure(4)
    store.close()


def test_a_file_size_limit_is_a_storage_error(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from tokenvm.errors import StorageError\n"
        "from tokenvm.memory.disk import DiskStore; from tokenvm.memory.layout import PageLayout\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "store = DiskStore(Path(sys.argv[1]), 1 << 24, PageLayout(2, 4096))\n"
        "try: store.ensure(2000)\n"
        "except StorageError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert "File too large" in result.stdout
    assert "nvme_limit=" in result.stdout


def test_too_many_open_files_say_what_to_type(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 6 * PAGE, LAYOUT, slab_pages=3)
    store.ensure(3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(StorageError) as growing:
            store.ensure(4)
        with pytest.raises(StorageError) as opening:
            DiskStore(tmp_path, PAGE, LAYOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for caught in (growing, opening):
        assert f"ulimit -n {lowest_free + disk.MOST_SLABS}" in str(caught.value)
        assert "nvme" not in str(caught.value), "no setting helps"
    assert store.high_water_bytes == 3 * PAGE
    store.ensure(4)
    assert store.high_water_bytes == 6 * PAGE
    store.close()


def test_a_machine_with_too_many_open_files_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DiskStore(tmp_path, PAGE, LAYOUT)

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=r"fs\.file-max"):
        store.ensure(1)


def test_a_limit_below_one_page_names_the_smallest(tmp_path: Path) -> None:
    with pytest.raises(LimitTooSmall, match=f"nvme_limit={PAGE}") as caught:
        DiskStore(tmp_path, PAGE - 1, LAYOUT)
    assert caught.value.minimum_bytes == PAGE


@pytest.mark.parametrize("path", ["/proc/nowhere", "/dev/null/pages"])
def test_a_path_that_cannot_be_written_names_the_setting(path: str) -> None:
    with pytest.raises(StorageError, match="set nvme_path"):
        DiskStore(Path(path), PAGE, LAYOUT)


class NoDirect:
    """Makes the kernel seem to refuse O_DIRECT."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(disk, "set_direct", self.refuse)

    def refuse(self, fd: int) -> None:
        raise OSError(errno.EINVAL, "no direct I/O")


def test_without_direct_io_it_warns_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    NoDirect(monkeypatch)
    with caplog.at_level(logging.WARNING, "tokenvm.memory"):
        store = DiskStore(tmp_path, 6 * PAGE, LAYOUT, slab_pages=2)
        store.ensure(6)
    assert not store.direct
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    store.close()


def test_direct_io_that_was_asked_for_must_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    NoDirect(monkeypatch)
    with pytest.raises(StorageError, match="does not do direct I/O"):
        DiskStore(tmp_path, PAGE, LAYOUT, direct=True)


def test_direct_io_is_what_files_are_opened_with(tmp_path: Path) -> None:
    import fcntl

    for direct in ("auto", False):
        store = DiskStore(tmp_path, PAGE, LAYOUT, direct=direct)  # type: ignore[arg-type]
        store.ensure(1)
        flags = fcntl.fcntl(int(store.places(0, 0).fd), fcntl.F_GETFL)
        assert bool(flags & os.O_DIRECT) == store.direct
        store.close()
    assert not store.direct
