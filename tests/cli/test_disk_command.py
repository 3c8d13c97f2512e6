"""`tokenvm disk`: what it prints, its exit codes, and what it says when it cannot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenvm import cli
from tokenvm.memory.kept_disk import Keep, KeptDiskStore
from tokenvm.memory.kept_size import geometry_of_store, limit_for
from tokenvm.memory.layout import PageLayout
from tokenvm.vocab import PageKey, SlotId

LAYOUT = PageLayout(2, 4096)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "kv"
    limit = limit_for(4, geometry_of_store(LAYOUT))
    store = KeptDiskStore(path, limit, LAYOUT, Keep(b"m" * 16, now_s=lambda: 1e9))
    store.ensure(4)
    store.register.remember(SlotId(0), PageKey(b"k" * 16), PageKey(b""))
    store.close()
    return path


def typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["tokenvm", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_inspect_verify_and_prune(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, Any]:
        code, out, _ = typed(monkeypatch, capsys, "disk", *words, str(folder), "--json")
        return code, json.loads(out.splitlines()[-1])

    code, facts = run("inspect")
    assert (code, facts["pages"], facts["writer"], facts["models"]) == (0, 1, 0, {b"m".hex() * 16: 1})
    assert run("verify") == (1, {"pages": 1, "changed": 0, "damaged": [0], "missing": []}), (
        "its bytes were never written"
    )
    assert run("prune", "--older-than", "20000d") == (0, {"removed_pages": 0, "pages": 1})
    assert run("prune", "--older-than", "7d") == (0, {"removed_pages": 1, "pages": 0})


def test_people_read_it_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENVM_NVME_PATH", str(folder))
    code, out, _ = typed(monkeypatch, capsys, "disk", "inspect")
    assert code == 0
    assert "1 of 4, 8.192 kB each" in out
    assert "nobody" in out
    code, out, _ = typed(monkeypatch, capsys, "disk", "verify")
    assert (code, out.startswith("0 of 1 pages are whole, 1 damaged")) == (1, True)
    assert typed(monkeypatch, capsys, "disk", "prune", "--all")[:2] == (0, "removed 1 pages, 0 stay\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("inspect",), "no nvme_path is set"),
        (("inspect", "/nowhere/at/all"), "is not a folder"),
        (("prune", "/tmp"), "--older-than 7d, or --all"),
        (("prune", "/tmp", "--all", "--older-than", "7d"), "--older-than 7d, or --all"),
        (("prune", "/tmp", "--older-than", "old"), "write it like"),
    ],
)
def test_what_cannot_be_done_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    monkeypatch.delenv("TOKENVM_NVME_PATH", raising=False)
    code, _, err = typed(monkeypatch, capsys, "disk", *words)
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1
