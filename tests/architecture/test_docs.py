"""What the documentation names exists: files, links, commands, options, make targets."""

from __future__ import annotations

from pathlib import Path

import documents
import pytest
import typer

from tokenvm.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAM = documents.typer_command(typer.main.get_command(app))
TARGETS = documents.make_targets((ROOT / "Makefile").read_text())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_what_exists(document: Path) -> None:
    assert documents.missing_paths(ROOT, document) == []
    assert documents.unknown_commands(document.read_text(), PROGRAM, TARGETS) == []


def test_phony_targets_exist() -> None:
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY"))
    assert set(phony.split()[1:]) == TARGETS


def test_the_program_and_the_targets_are_understood() -> None:
    assert {"run", "verify", "config", "env", "bench"} <= set(PROGRAM.commands)
    assert "decode" in PROGRAM.commands["bench"].commands
    assert "--json" in PROGRAM.commands["run"].options
    assert {"run", "test", "clean-all"} <= TARGETS


# Proof that the checkers can fail

TEXT = """
The ledger is `src/vm/ledger.py`, short `ledger.py`; see also `ledger.py::check`.
Not ours: `~/.config/vm/config.toml`, `/etc/hosts.txt`, `tokens/s`, `model.safetensors`, `a/b/*.py`, `x = f.py`.
[The law](law.md#rows) and [elsewhere](https://example.org/law.md).

```sh
make build test && tokenvm run --json   # then tokenvm fly
TOKENVM_KV_MB=1 .venv/bin/tokenvm bench decode --context 8000 | tail -1
```

```python
from tokenvm import LLM
```
Or `python -m tokenvm run`, or `tokenvm --version`, or `tokenvm`; `tokenvm run --help`; `make PYTHON=python3`.
"""
SMALL = documents.Command(
    frozenset({"--version"}),
    {
        "run": documents.Command(frozenset({"--json"})),
        "bench": documents.Command(commands={"decode": documents.Command(frozenset({"--context"}))}),
    },
)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    (tmp_path / "src" / "vm").mkdir(parents=True)
    (tmp_path / "src" / "vm" / "ledger.py").touch()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "law.md").touch()
    path = tmp_path / "docs" / "page.md"
    path.write_text(TEXT)
    return path


def test_a_true_document_passes(document: Path) -> None:
    assert documents.missing_paths(document.parents[1], document) == []
    assert documents.unknown_commands(TEXT, SMALL, {"build", "test"}) == []


@pytest.mark.parametrize(
    ("addition", "missing"),
    [
        ("`src/vm/gone.py`", "src/vm/gone.py"),
        ("`src/vm/ledger.txt`", "src/vm/ledger.txt"),
        ("`edger.py`", "edger.py"),
        ("`gone.hpp`", "gone.hpp"),
        ("`docs/gone.md`", "docs/gone.md"),
        ("[gone](gone.md)", "gone.md"),
        ("![picture](pictures/gone.svg)", "pictures/gone.svg"),
    ],
)
def test_a_missing_file_is_found(document: Path, addition: str, missing: str) -> None:
    document.write_text(f"{TEXT}\n{addition}\n")
    assert documents.missing_paths(document.parents[1], document) == [missing]


@pytest.mark.parametrize(
    ("addition", "unknown"),
    [
        ("`tokenvm fly`", "tokenvm fly"),
        ("`tokenvm bench encode --context 5`", "tokenvm bench encode"),
        ("`tokenvm run --fast`", "tokenvm run --fast"),
        ("`tokenvm run -x`", "tokenvm run -x"),
        ("`make bread`", "make bread"),
        ("`make build bread -j2`", "make bread"),
        ("```\n$ python3 -m tokenvm fly\n```", "tokenvm fly"),
        ("```bash\ncd x && make bread\n```", "make bread"),
        ("```sh\ntokenvm run \\\n  --fast\n```", "tokenvm run --fast"),
    ],
)
def test_an_unknown_command_is_found(addition: str, unknown: str) -> None:
    assert documents.unknown_commands(f"{TEXT}\n{addition}\n", SMALL, {"build", "test"}) == [unknown]
