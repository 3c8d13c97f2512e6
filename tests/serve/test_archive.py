"""The archive keeps what is not its own, keeps nothing by halves, and says when it is damaged."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenvm.errors import StorageError
from tokenvm.serve.archive import Archive


def test_only_what_a_crash_left_of_ours_is_swept_away(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    kept = archive.add(io.BytesIO(b"text"), "in.jsonl", "batch")
    archive.close()
    files = tmp_path / "files"
    ours = "file-" + "a" * 32
    strange = ["notes.txt", "file-1", f"{ours}.txt", "file-" + "A" * 32]
    for name in [*strange, ours, f"{ours}.part"]:
        (files / name).write_text("x")
    (files / ("file-" + "b" * 32)).mkdir()
    (files / ("file-" + "c" * 32)).symlink_to(files / "notes.txt")
    Archive(tmp_path).close()
    left = {path.name for path in files.iterdir()}
    assert left == {kept.id, *strange, "file-" + "b" * 32, "file-" + "c" * 32}


def test_a_damaged_index_is_said(tmp_path: Path) -> None:
    Archive(tmp_path).close()
    (tmp_path / "index.sqlite3").write_bytes(b"no index at all" * 400)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"not a database.*--state-dir"):
            Archive(tmp_path)
    (tmp_path / "index.sqlite3").unlink()
    Archive(tmp_path).close()


def _breaks(error: Exception) -> Iterator[bytes]:
    yield b"some"
    raise error


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(tmp_path)
    with pytest.raises(KeyError):
        archive.add(_breaks(KeyError("inside")), "a", "batch")

    def full(_file: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        archive.add(io.BytesIO(b"text"), "a", "batch")
    assert list((tmp_path / "files").iterdir()) == []
    assert archive.files(None) == []
    archive.close()
