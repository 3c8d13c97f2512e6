"""Uploaded files and batches on disk: what was uploaded, what was answered. Survives a restart and a crash.

An index in SQLite, and one file of bytes for each uploaded or made file, named by an id of ours. What clients call a
file is text in the index and never part of a path.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from tokenvm.errors import StorageError

_CHUNK_BYTES: Final = 1 << 20
_OURS: Final = re.compile(r"file-[0-9a-f]{32}(\.part)?")
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, place INTEGER, created INTEGER, bytes INTEGER, name TEXT, purpose TEXT);
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, place INTEGER, record TEXT);
CREATE TABLE IF NOT EXISTS answers (
    batch TEXT, line INTEGER, failed INTEGER, text TEXT, PRIMARY KEY (batch, line));
"""

Record = dict[str, Any]
"""A batch as OpenAI's API shows it."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in the archive; `created` in seconds since 1970."""

    id: str
    created: int
    bytes: int
    name: str
    purpose: str

    def as_dict(self) -> dict[str, Any]:
        """Return OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


class Archive:
    """A folder, which it owns while it is open. Any thread may call it; calls wait for each other and for the disk.

    Raises StorageError where another server has the folder, it cannot be written, or its index is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._bytes_folder = folder / "files"
        self._lock = threading.Lock()
        try:
            with ExitStack() as opened:
                self._open(folder, opened)
                self._opened = opened.pop_all()
        except (OSError, sqlite3.Error) as error:
            raise StorageError(
                f"{folder} cannot be used ({error}): give this server a --state-dir of its own"
            ) from error

    def close(self) -> None:
        """Let go of the folder."""
        with self._lock:
            self._opened.close()

    def add(self, content: BinaryIO | Iterable[bytes], name: str, purpose: str) -> StoredFile:
        """Keep a file; it is there whole or not at all. Raises StorageError where the disk does not take it."""
        id_ = f"file-{secrets.token_hex(16)}"
        path, part = self._bytes_folder / id_, self._bytes_folder / f"{id_}.part"
        chunks = content if not hasattr(content, "read") else iter(lambda: content.read(_CHUNK_BYTES), b"")
        try:
            size = _write(part, chunks)
            part.rename(path)
            made = StoredFile(id_, int(time.time()), size, name, purpose)
            with self._writing() as index:
                place = _next_place(index, "files")
                values = (made.id, place, made.created, made.bytes, made.name, made.purpose)
                index.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", values)
        except BaseException as error:
            for left in (part, path):
                with suppress(OSError):
                    left.unlink()
            if isinstance(error, OSError):
                raise StorageError(f"the file cannot be kept ({error}): check --state-dir") from error
            raise
        return made

    def file(self, id_: str) -> StoredFile | Literal["missing"]:
        """Return a file."""
        with self._lock:
            query = "SELECT id, created, bytes, name, purpose FROM files WHERE id = ?"
            row = self._index.execute(query, (id_,)).fetchone()
        return StoredFile(*row) if row else "missing"

    def files(self, purpose: str | None) -> list[StoredFile]:
        """Return all files, or those of a purpose, the newest first."""
        query = "SELECT id, created, bytes, name, purpose FROM files WHERE ? IS NULL OR purpose = ? ORDER BY place DESC"
        with self._lock:
            return [StoredFile(*row) for row in self._index.execute(query, (purpose, purpose))]

    def path(self, file: StoredFile) -> Path:
        """Return where a file's bytes lie."""
        return self._bytes_folder / file.id

    def remove(self, file: StoredFile) -> None:
        """Forget a file."""
        with self._writing() as index:
            index.execute("DELETE FROM files WHERE id = ?", (file.id,))
        self.path(file).unlink(missing_ok=True)

    def save(self, record: Record) -> None:
        """Enter a batch, or what became of it."""
        text = json.dumps(record)
        with self._writing() as index:
            known = index.execute("UPDATE batches SET record = ? WHERE id = ?", (text, record["id"])).rowcount
            if not known:
                place = _next_place(index, "batches")
                index.execute("INSERT INTO batches VALUES (?, ?, ?)", (record["id"], place, text))

    def batch(self, id_: str) -> Record | Literal["missing"]:
        """Return a batch."""
        found = [one for one in self.batches() if one["id"] == id_]
        return found[0] if found else "missing"

    def batches(self) -> list[Record]:
        """Return all batches, the newest first; of one that runs, with the requests answered so far."""
        with self._lock:
            rows = self._index.execute("SELECT record FROM batches ORDER BY place DESC").fetchall()
            counted = self._index.execute(
                "SELECT batch, COUNT(*) - SUM(failed), SUM(failed) FROM answers GROUP BY batch"
            ).fetchall()
        answered = {batch: {"completed": done, "failed": failed} for batch, done, failed in counted}
        records = [json.loads(text) for (text,) in rows]
        for record in records:
            record["request_counts"] |= answered.get(record["id"], {})
        return records

    def answer(self, batch: str, line: int, failed: bool, text: str) -> None:
        """Keep the answer to a batch's line."""
        with self._writing() as index:
            index.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (batch, line, failed, text))

    def answered(self, batch: str) -> set[int]:
        """Return the lines that have an answer."""
        with self._lock:
            return {
                line for (line,) in self._index.execute("SELECT line FROM answers WHERE batch = ?", (batch,))
            }

    def answers(self, batch: str, failed: bool) -> list[str]:
        """Return the answers of a batch, or its errors, in the order of its lines."""
        query = "SELECT text FROM answers WHERE batch = ? AND failed = ? ORDER BY line"
        with self._lock:
            return [text for (text,) in self._index.execute(query, (batch, failed))]

    def forget_answers(self, batch: str) -> None:
        """Drop what was written into files."""
        with self._writing() as index:
            index.execute("DELETE FROM answers WHERE batch = ?", (batch,))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock, self._index:
                yield self._index
        except sqlite3.Error as error:
            raise StorageError(f"the archive cannot be written ({error}): check --state-dir") from error

    def _open(self, folder: Path, opened: ExitStack) -> None:
        self._bytes_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        opened.callback(os.close, owner)
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._index = sqlite3.connect(folder / "index.sqlite3", check_same_thread=False)
        opened.callback(self._index.close)
        self._index.execute("PRAGMA journal_mode=WAL")
        (found,) = self._index.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"its index is damaged: {found}")
        self._index.executescript(_TABLES)
        self._sweep()

    def _sweep(self) -> None:
        """Drop bytes of ours that the index does not know: what a crash left. Nobody else's files are touched."""
        known = {file.id for file in self.files(None)}
        for path in self._bytes_folder.iterdir():
            ours = _OURS.fullmatch(path.name) and path.is_file() and not path.is_symlink()
            if ours and path.name not in known:
                path.unlink()


def _write(path: Path, chunks: Iterable[bytes]) -> int:
    """Write a new file through to the disk; return its bytes."""
    with open(path, "xb", opener=_private) as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _next_place(index: sqlite3.Connection, table: Literal["files", "batches"]) -> int:
    (place,) = index.execute(f"SELECT COALESCE(MAX(place), 0) + 1 FROM {table}").fetchone()
    return int(place)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
