"""Rooms import only lower rows, keep no state and stay small; each checker is shown a tree it must refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import laws
import pytest
from source_tree import Import, Module, imports, modules

ROOT = Path(__file__).parents[2]
TREE = modules(ROOT / "src")
IMPORTS = imports(TREE)
OF_IMPORTS = (laws.row_breaches, laws.cycle_breaches, laws.ban_breaches, laws.lazy_breaches)
OF_MODULES = (laws.state_breaches, laws.work_breaches, laws.function_breaches)


def sources() -> list[Path]:
    kinds = ("*.py", "*.cpp", "*.hpp", "*.h", "*.cmake")
    return [path for folder in ("src", "csrc") for kind in kinds for path in (ROOT / folder).rglob(kind)]


@pytest.mark.parametrize("breaches", OF_IMPORTS)
def test_imports_keep_the_law(breaches: Callable[[list[Import]], list[str]]) -> None:
    assert len(IMPORTS) > 100
    assert breaches(IMPORTS) == []


@pytest.mark.parametrize("breaches", OF_MODULES)
def test_modules_keep_the_law(breaches: Callable[[list[Module]], list[str]]) -> None:
    assert len(TREE) > 30
    assert breaches(TREE) == []


def test_files_are_short() -> None:
    assert len(sources()) > 60
    assert laws.file_breaches(sources()) == []


# Proof that each checker can fail

Files = dict[str, str]


def plant(tmp_path: Path, files: Files) -> list[Module]:
    """Write a package of these files: path without suffix → text."""
    for name, text in files.items():
        path = tmp_path / "tokenvm" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return modules(tmp_path)


GOOD: Files = {
    "__init__": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tokenvm.llm import LLM\n",
    "__main__": "from tokenvm.cli import main",
    "cli": "import typer\nfrom tokenvm import __version__\ndef run():\n    from tokenvm.bench.job import Job\n",
    "bench/job": "import rich\nfrom tokenvm.llm import LLM",
    "llm": "from tokenvm.engine.engine import Engine",
    "engine/engine": "from tokenvm import outputs\nfrom tokenvm.vm import Vm",
    "outputs": "",
    "vm": "from tokenvm.memory.disk import Disk\nfrom tokenvm.residency.ledger import Ledger",
    "memory/disk": "import os, threading\nfrom . import codec",
    "memory/codec": "from typing import Final\nfrom collections.abc import Mapping\nA: Final[Mapping[str, int]] = {}",
    "models/fetch": "def get():\n    from tokenvm.models import builtin",
    "models/builtin": "NAMES = ('a', 'b')\n__all__ = ['NAMES']",
    "kernels/native": "def native():\n    import tokenvm._native as found\n    return found",
    "residency/ledger": "import heapq\nfrom tokenvm.vocab import Tier",
    "schedule/plan": "from tokenvm.vocab import Tier",
    "vocab": "class Tier:\n    names = []\ndef fresh():\n    found = {}\n    return found",
}


def test_a_good_tree_passes(tmp_path: Path) -> None:
    tree = plant(tmp_path, GOOD)
    found = imports(tree)
    assert [breach for check in OF_IMPORTS for breach in check(found)] == []
    assert [breach for check in OF_MODULES for breach in check(tree)] == []


ROW, CYCLE, BAN, LAZY = OF_IMPORTS
STATE, WORK, LENGTH = OF_MODULES

BAD_IMPORTS = [
    (ROW, {"vocab": "from tokenvm.residency.ledger import Ledger"}),
    (ROW, {"memory/disk": "from tokenvm.models.fetch import get"}),
    (ROW, {"memory/disk": "from tokenvm import vm"}),
    (ROW, {"kernels/native": "from ..vm import Vm"}),
    (ROW, {"kernels/native": "def f():\n    from tokenvm.vm import Vm"}),
    (ROW, {"kernels/native": "import importlib\ndef f():\n    importlib.import_module('tokenvm.vm')"}),
    (ROW, {"kernels/native": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tokenvm.vm"}),
    (ROW, {"engine/engine": "from tokenvm import LLM"}),
    (ROW, {"engine/engine": "import tokenvm"}),
    (ROW, {"garage/car": "from tokenvm.vocab import Tier"}),
    (ROW, {"__init__": "from tokenvm.llm import LLM"}),
    (ROW, {"__main__": "from tokenvm.llm import LLM"}),
    (CYCLE, {"memory/codec": "from tokenvm.memory.disk import Disk"}),
    (CYCLE, {"memory/codec": "def f():\n    from .disk import Disk"}),
    (CYCLE, {"outputs": "from tokenvm.engine.sampler import Choice", "engine/sampler": ""}),
    (BAN, {"residency/ledger": "import torch"}),
    (BAN, {"residency/ledger": "from os import path"}),
    (BAN, {"residency/policy/lru": "import os.path"}),
    (BAN, {"residency/ledger": "def f():\n    import time"}),
    (BAN, {"residency/ledger": "from tokenvm.memory.disk import Disk"}),
    (BAN, {"schedule/plan": "import asyncio"}),
    (BAN, {"schedule/plan": "from tokenvm.kernels import native"}),
    (BAN, {"memory/disk": "from tokenvm.residency.ledger import Ledger"}),
    (BAN, {"models/fetch": "from tokenvm.kernels.attention import attend", "kernels/attention": ""}),
    (BAN, {"models/fetch": "from transformers import AutoModel"}),
    (BAN, {"llm": "import fastapi"}),
    (BAN, {"engine/engine": "def f():\n    import typer"}),
    (BAN, {"engine/engine": "from rich.console import Console"}),
    (BAN, {"memory/disk": "from tokenvm import _native"}),
    (BAN, {"engine/engine": "import tokenvm.memory.disk\nimport tokenvm.residency.ledger"}),
    (LAZY, {"engine/engine": "def f():\n    from tokenvm.vm import Vm"}),
    (LAZY, {"vm": "class C:\n    async def f(self):\n        import tokenvm.vocab"}),
]


@pytest.mark.parametrize(("breaches", "files"), BAD_IMPORTS)
def test_bad_imports_are_found(
    tmp_path: Path, breaches: Callable[[list[Import]], list[str]], files: Files
) -> None:
    assert len(breaches(imports(plant(tmp_path, {**GOOD, **files})))) == 1


BAD_MODULES = [
    (STATE, "SEEN = {}"),
    (STATE, "SEEN: dict[str, int] = {}"),
    (STATE, "from typing import Final\nSEEN: Final = [1]"),
    (STATE, "SEEN = {n for n in (1, 2)}"),
    (STATE, "SEEN = dict.fromkeys('ab')"),
    (STATE, "import collections\nSEEN = collections.defaultdict(list)"),
    (STATE, "if True:\n    SEEN = []"),
    (STATE, "COUNT = 0\ndef f():\n    global COUNT\n    COUNT = 1"),
    (WORK, "print('hello')"),
    (WORK, "import os\nHOME = os.environ['HOME']"),
    (WORK, "from os import getenv\nHOME = getenv('HOME')"),
    (WORK, "try:\n    connect()\nfinally:\n    pass"),
    (LENGTH, "def long():\n" + "    x = 1\n" * 40),
    (LENGTH, "class C:\n    async def long(self):\n" + "        x = 1\n" * 40),
]


@pytest.mark.parametrize(("breaches", "text"), BAD_MODULES)
def test_bad_modules_are_found(
    tmp_path: Path, breaches: Callable[[list[Module]], list[str]], text: str
) -> None:
    assert len(breaches(plant(tmp_path, {**GOOD, "machine": text}))) == 1


def test_a_function_may_have_forty_lines_beside_its_docstring(tmp_path: Path) -> None:
    text = 'def long():\n    """Says.\n\n    Much.\n    """\n' + "    x = 1\n" * 39
    assert LENGTH(plant(tmp_path, {"machine": text})) == []


def test_a_long_file_is_found(tmp_path: Path) -> None:
    for lines, breaches in ((300, 0), (301, 1)):
        path = tmp_path / "long.cpp"
        path.write_text("//\n" * lines)
        assert len(laws.file_breaches([path])) == breaches
