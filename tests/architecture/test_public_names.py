"""What the package offers, and that asking for it is cheap."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import Module, modules

import tokenvm

SOURCE = Path(__file__).parents[2] / "src"
HEAVY = ("torch", "transformers", "numpy", "pydantic", "rich", "typer", "gguf", "safetensors", "tokenizers")


def public_names(module: Module) -> list[str] | None:
    """Return a module's `__all__` as written, None if it has none."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def is_sorted(names: list[str]) -> bool:
    """Constants, then classes, then the rest, each by the alphabet; nothing twice."""
    order = sorted(set(names), key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    return names == order


DECLARED = [(module.name, names) for module in modules(SOURCE) if (names := public_names(module)) is not None]


@pytest.mark.parametrize(("module", "names"), DECLARED)
def test_all_is_sorted_and_exists(module: str, names: list[str]) -> None:
    assert is_sorted(names)
    loaded = importlib.import_module(module)
    assert [name for name in names if not hasattr(loaded, name)] == []


def test_the_package_declares_its_names() -> None:
    assert dict(DECLARED)["tokenvm"] == list(tokenvm.__all__)
    assert set(tokenvm.__all__) <= set(dir(tokenvm))
    assert not hasattr(tokenvm, "NoSuchName")


def test_the_order_can_be_wrong() -> None:
    assert is_sorted(["LLM", "Alpha", "Beta", "run"])
    assert not is_sorted(["Beta", "Alpha"])
    assert not is_sorted(["run", "Alpha"])
    assert not is_sorted(["Alpha", "Alpha"])


def loaded_by(statement: str) -> set[str]:
    """Return which modules a fresh interpreter has loaded after a statement."""
    script = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_heavy() -> None:
    before = loaded_by("pass")
    after = loaded_by("import tokenvm")
    assert after - before >= {"tokenvm"}
    assert not [name for name in after - before if name.startswith("tokenvm.")]
    assert not after & set(HEAVY) - before


def test_the_pure_rooms_load_nothing_heavy() -> None:
    rooms = "import tokenvm.residency.planner, tokenvm.residency.policy.registry, tokenvm.schedule.scheduler"
    after = loaded_by(rooms)
    assert "tokenvm.schedule.scheduler" in after
    assert not after & set(HEAVY)


def test_the_command_line_starts_without_torch() -> None:
    after = loaded_by("import tokenvm.cli")
    assert "typer" in after
    assert not after & {"torch", "transformers"}


def test_the_front_process_of_an_engine_needs_no_torch() -> None:
    after = loaded_by("import tokenvm.async_llm")
    assert "tokenvm.engine_process.connection" in after
    assert not after & {"torch", "transformers"}
