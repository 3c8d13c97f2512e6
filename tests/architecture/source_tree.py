"""Reads the source tree as syntax: who imports what, and where."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "tokenvm"


@dataclass(frozen=True)
class Import:
    """One imported module. `local`: inside a function; `typing`: only for type checkers."""

    importer: str
    target: str
    line: int
    local: bool = False
    typing: bool = False

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


@dataclass(frozen=True)
class Module:
    """A parsed file of the package."""

    name: str
    path: Path
    tree: ast.Module


def modules(source: Path) -> list[Module]:
    """Parse every module below `source`, the folder that holds the package."""
    found = []
    for path in sorted((source / PACKAGE).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, ast.parse(path.read_text(), str(path))))
    return found


def imports(tree: list[Module]) -> list[Import]:
    """List every import of every module; `from package import module` counts as the module."""
    names = {module.name for module in tree}
    return [found for module in tree for found in _Walker(module, names).found]


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


class _Walker(ast.NodeVisitor):
    def __init__(self, module: Module, names: set[str]) -> None:
        self._module, self._names = module, names
        self._local = self._typing = False
        self.found: list[Import] = []
        self.visit(module.tree)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outside, self._local = self._local, True
        self.generic_visit(node)
        self._local = outside

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - the name that ast looks for

    def visit_If(self, node: ast.If) -> None:
        outside = self._typing
        self._typing = outside or "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.body:
            self.visit(child)
        self._typing = outside
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self._absolute(node)
        for alias in node.names:
            name = f"{base}.{alias.name}"
            in_package = base == PACKAGE or name in self._names
            self._add(name if in_package else base, node)

    def visit_Call(self, node: ast.Call) -> None:
        """`importlib.import_module("...")` and `__import__("...")` are imports too."""
        called = ast.unparse(node.func)
        if called in ("importlib.import_module", "import_module", "__import__"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    self._add(argument.value, node)
        self.generic_visit(node)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        is_package = self._module.path.name == "__init__.py"
        parts = self._module.name.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        return ".".join([*parts, node.module] if node.module else parts)

    def _add(self, target: str, node: ast.stmt | ast.expr) -> None:
        found = Import(self._module.name, target, node.lineno, self._local, self._typing)
        if found not in self.found:
            self.found.append(found)
