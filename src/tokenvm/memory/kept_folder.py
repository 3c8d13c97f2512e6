"""A folder of kept pages seen from outside: what is in it, whether it is whole, and how to make it less."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tokenvm.errors import StorageError
from tokenvm.memory.disk import offsets_in_slab
from tokenvm.memory.folder_lock import FolderLock, owner_of
from tokenvm.memory.kept_size import SLAB_NAME, slab_name, taken_bytes
from tokenvm.memory.page_format import Head, Records, Verdict, checksum_of, unpack_bits
from tokenvm.memory.page_index import Contents, FileCalls, IndexFiles, open_regular, read_index, remove_index
from tokenvm.memory.recovery import Losses, reachable


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """What a folder holds, at one moment. `writer` is the process that writes to it, 0 where none does.

    `models` counts pages by fingerprint, in hexadecimal. Times are Unix time; 0 where there are no pages.
    """

    path: str
    state: str
    writer: int
    taken_bytes: int
    pages: int = 0
    capacity: int = 0
    page_bytes: int = 0
    codec: str = "none"
    generation: int = 0
    damaged_records: int = 0
    oldest_s: int = 0
    newest_s: int = 0
    models: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Verified:
    """How many pages were read; which slots of them are damaged, or lie in a slab that is missing.

    `changed` were written again while they were read.
    """

    pages: int = 0
    changed: int = 0
    damaged: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)


def inspect_folder(path: Path) -> FolderFacts:
    """Describe a folder; nobody is disturbed, live or not. StorageError where it cannot be read."""
    contents = _contents(path)
    known = (str(path), contents.verdict.value, owner_of(path), taken_bytes(path))
    if contents.verdict is not Verdict.GOOD:
        return FolderFacts(*known)
    head, pages = contents.head, contents.pages
    names, counts = np.unique(
        np.ascontiguousarray(pages["fingerprint"]).view("S16").ravel(), return_counts=True
    )
    written = pages["written_s"]
    return FolderFacts(
        *known,
        pages=len(pages),
        capacity=head.capacity,
        page_bytes=head.geometry.page_bytes,
        codec=head.geometry.codec,
        generation=head.generation,
        damaged_records=contents.damaged_records,
        oldest_s=int(written.min(initial=np.uint64(2**63))) if len(pages) else 0,
        newest_s=int(written.max(initial=np.uint64(0))),
        models={name.ljust(16, b"\0").hex(): int(n) for name, n in zip(names.tolist(), counts, strict=True)},
    )


def verify_folder(path: Path, on_page: Callable[[int, int], None] = lambda done, total: None) -> Verified:
    """Read every page and compare every checksum; nobody is disturbed, live or not.

    `on_page` hears how many of all are done. StorageError where the folder has no index that can be read.
    """
    contents = _readable(path)
    found, suspects = Verified(pages=len(contents.pages)), []
    with _slabs(path, contents.head, os.O_RDONLY) as open_slab:
        for done, row in enumerate(contents.pages, 1):
            fd = open_slab(int(row["slot"]) // contents.head.slab_pages)
            if fd < 0:
                found.missing.append(int(row["slot"]))
            elif not _whole(fd, row, contents.head):
                suspects.append(row)
            on_page(done, len(contents.pages))
    now = {int(row["slot"]): row for row in read_index(path).pages} if suspects else {}
    for row in suspects:
        slot = int(row["slot"])
        if slot in now and now[slot]["checksums"].tolist() == row["checksums"].tolist():
            found.damaged.append(slot)
        else:
            found.changed += 1
    return found


def prune_folder(path: Path, oldest_s: float) -> tuple[int, int]:
    """Remove pages written before `oldest_s`, and all that go on from them; return how many went and how many stay.

    At infinity everything goes, whatever the index is. What empty slots hold is overwritten, and slabs of empty slots
    alone are deleted. The folder is locked meanwhile: StorageError where a process writes to it, and where pages have
    no index that tells their age.
    """
    if not path.is_dir():
        raise StorageError(f"{path} is not a folder: type the nvme_path that pages were kept in")
    lock = FolderLock(path)
    try:
        contents = read_index(path)
        if contents.verdict is not Verdict.GOOD:
            if oldest_s < float("inf"):
                _refuse_unknown_ages(path, contents.verdict)
            _delete_all(path)
            return 0, 0
        kept = reachable(contents.pages[contents.pages["written_s"] >= max(0.0, oldest_s)], Losses())
        if not len(kept.pages):
            _delete_all(path)
        else:
            _rewrite(path, contents, kept.pages[list(kept.idle_order)])
        return len(contents.pages) - len(kept.pages), len(kept.pages)
    except OSError as error:
        raise StorageError(f"cannot change {path} ({error.strerror or error}): make it writable") from error
    finally:
        lock.release()


def _refuse_unknown_ages(path: Path, verdict: Verdict) -> None:
    if verdict is not Verdict.BLANK or any(map(SLAB_NAME.fullmatch, os.listdir(path))):
        raise StorageError(
            f"the index in {path} is {verdict.value}: how old its pages are is not known; nothing was removed. "
            f"`tokenvm disk prune --all {path}` removes all of them"
        )


def _rewrite(path: Path, contents: Contents, pages: Records) -> None:
    """Write the index first: what is erased afterwards is in it no more."""
    head = contents.head
    files = IndexFiles(
        path, head.geometry, head.slab_pages, head.capacity, contents, flush=True, calls=FileCalls()
    )
    try:
        files.checkpoint(pages)
    finally:
        files.close()
    kept = {int(slot) for slot in pages["slot"]}
    with _slabs(path, head, os.O_RDWR) as open_slab:
        for slab in range(head.capacity // head.slab_pages):
            slots = range(slab * head.slab_pages, (slab + 1) * head.slab_pages)
            if kept.isdisjoint(slots):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path / slab_name(slab))
                continue
            for slot in slots:
                if slot not in kept and open_slab(slab) >= 0:
                    _erase(open_slab(slab), slot, head)


def _erase(fd: int, slot: int, head: Head) -> None:
    geometry = head.geometry
    places, tails = _offsets(slot, head)
    for place, tail in zip(places, tails, strict=True):
        os.pwrite(fd, bytes(geometry.far_bytes), place)
        os.pwrite(fd, bytes(geometry.part_stride - geometry.far_bytes), tail)


def _whole(fd: int, row: np.void, head: Head) -> bool:
    """Whether every part of a page matches its checksum."""
    geometry = head.geometry
    packed = unpack_bits(row["packed"], geometry.layers)
    places, tails = _offsets(int(row["slot"]), head)
    for layer, (place, tail) in enumerate(zip(places, tails, strict=True)):
        part = os.pread(fd, geometry.far_bytes, place)
        if not packed[layer]:
            part += os.pread(fd, geometry.part_stride - geometry.far_bytes, tail)
        if checksum_of(part) != int(row["checksums"][layer]):
            return False
    return True


def _offsets(slot: int, head: Head) -> tuple[list[int], list[int]]:
    geometry = head.geometry
    at = np.full(geometry.layers, slot % head.slab_pages, np.int64)
    layers = np.arange(geometry.layers)
    place, tail = offsets_in_slab(at, layers, head.slab_pages, geometry.part_stride, geometry.far_bytes)
    return place.tolist(), tail.tolist()


@contextmanager
def _slabs(path: Path, head: Head, flags: int) -> Iterator[Callable[[int], int]]:
    """Lend what opens a slab, each once; -1 for one that is missing or has a wrong length."""
    fds: dict[int, int] = {}

    def open_slab(slab: int) -> int:
        if slab not in fds:
            fds[slab] = -1
            with contextlib.suppress(OSError):
                fds[slab] = open_regular(path / slab_name(slab), flags)
            if fds[slab] >= 0 and os.fstat(fds[slab]).st_size != head.slab_pages * head.geometry.page_bytes:
                os.close(fds[slab])
                fds[slab] = -1
        return fds[slab]

    try:
        yield open_slab
    finally:
        for fd in fds.values():
            if fd >= 0:
                os.close(fd)


def _delete_all(path: Path) -> None:
    for entry in list(os.scandir(path)):
        if SLAB_NAME.fullmatch(entry.name):
            os.unlink(entry.path)
    remove_index(path)


def _contents(path: Path) -> Contents:
    try:
        if not path.is_dir():
            raise StorageError(f"{path} is not a folder: type the nvme_path that pages were kept in")
        return read_index(path)
    except OSError as error:
        raise StorageError(f"cannot read {path} ({error.strerror or error}): make it readable") from error


def _readable(path: Path) -> Contents:
    contents = _contents(path)
    if contents.verdict is not Verdict.GOOD:
        raise StorageError(
            f"the index in {path} is {contents.verdict.value}: nothing in it can be verified; "
            f"`tokenvm disk prune --all {path}` makes room"
        )
    return contents
