"""The laws of the source tree, as data and as checkers that list every breach."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from source_tree import PACKAGE, Import, Module, functions

ROWS: Mapping[int, tuple[str, ...]] = {
    9: ("cli cli_bench cli_config cli_disk cli_options cli_serve cli_simulate cli_toka bench simulate",),
    8: ("serve",),
    7: ("bridges", "llm async_llm engine_process"),
    6: ("engine collect outputs prompts stop_strings",),
    5: (
        "borrowed",
        "kvcache staging arrange stream open_pages prefix_cache pauses sequences",
        "tensors tensor_memory",
    ),
    4: ("vm room losses moves watch frozen keeping",),
    3: ("memory", "models", "schedule", "tokenizer chat_template"),
    2: ("kernels", "parallel", "residency"),
    1: ("vocab errors config config_values clock metrics sizes machine json_file",),
    0: ("_native",),
}
"""Row → its rooms. A room imports only lower rows; modules named together share a room."""

ROW_OF = {name: row for row, rooms in ROWS.items() for room in rooms for name in room.split()}
ROOM_OF = {name: room for rooms in ROWS.values() for room in rooms for name in room.split()}

BANNED: Mapping[str, tuple[str, ...]] = {
    "residency": ("torch", "threading", "asyncio", "os", "time", f"{PACKAGE}.memory", f"{PACKAGE}.kernels"),
    "schedule": ("torch", "threading", "asyncio", "os", "time", f"{PACKAGE}.memory", f"{PACKAGE}.kernels"),
    "memory": (f"{PACKAGE}.residency",),
    "models": (f"{PACKAGE}.residency", f"{PACKAGE}.kernels.attention", f"{PACKAGE}.kernels.paging"),
}
"""Room → what it must not know, though it may lie lower."""

RESERVED: Mapping[str, tuple[str, ...]] = {
    "transformers": ("bridges", "bench", "borrowed"),
    "fastapi": ("serve",),
    "prometheus_client": ("serve",),
    "starlette": ("serve",),
    "uvicorn": ("serve",),
    "typer": ("cli", "cli_bench", "cli_config", "cli_disk", "cli_options", "cli_serve", "cli_simulate"),
    "msgspec": ("engine_process", "serve"),
    "llguidance": ("engine.sampling",),
    "rich": (
        "cli",
        "cli_bench",
        "cli_config",
        "cli_disk",
        "cli_simulate",
        "bench",
        "simulate",
        "serve",
        "bridges",
        "llm",
    ),
    f"{PACKAGE}._native": ("kernels.native", "memory.cpu"),
}
"""Package → the only rooms or modules that may import it."""

SEE_MEMORY_AND_RESIDENCY = ("vm", "moves", "watch", "keeping", "engine.launch", "engine.tiers")
"""Where decisions meet bytes, and where both are put together."""

LAZY = (
    "",
    "cli",
    "cli_bench",
    "cli_config",
    "cli_disk",
    "cli_serve",
    "cli_simulate",
    "cli_toka",
    "kernels",
    "models.fetch",
    "models.builtin",
)
"""Modules and rooms that may import ours inside functions: to start quickly or to load what may be missing."""

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
READ_ONLY = re.compile(r"\b(Mapping|Sequence|Set|Collection|Iterable)\[")
MAKES_MUTABLE = {"dict", "list", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict"}
DISPLAYS = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)


def inside(module: str) -> str:
    """Return a module's name without the package's: "kernels.paging", and "" for the package itself."""
    return module.removeprefix(PACKAGE).removeprefix(".")


def room_name(module: str) -> str:
    return inside(module).partition(".")[0]


def within(module: str, names: Iterable[str]) -> bool:
    """Whether a dotted name is one of `names` or lies below one."""
    return any(module == name or (name and module.startswith(f"{name}.")) for name in names)


def ours(found: Import) -> bool:
    return within(found.target, [PACKAGE])


def row_breaches(found: list[Import]) -> list[str]:
    """List imports of higher rows, of other rooms in the same row, and rooms that have no row."""
    breaches = []
    for one in filter(ours, found):
        importer, target = room_name(one.importer), room_name(one.target)
        if importer == "":
            allowed = one.typing or one.local
        elif importer == "__main__":
            allowed = target == "cli"
        elif one.target == f"{PACKAGE}.__version__":
            allowed = True
        elif importer not in ROW_OF or target not in ROW_OF:
            allowed = False
        else:
            allowed = ROOM_OF[importer] == ROOM_OF[target] or ROW_OF[target] < ROW_OF[importer]
        if not allowed:
            breaches.append(str(one))
    return breaches


def cycle_breaches(found: list[Import]) -> list[str]:
    """List a cycle among modules and one among rooms, wherever in the files the imports stand."""
    inner = [one for one in found if ours(one) and room_name(one.importer)]
    by_module = [(one.importer, one.target) for one in inner]
    by_room = [(room_name(one.importer), room_name(one.target)) for one in inner]
    graphs = (by_module, [(importer, target) for importer, target in by_room if importer != target])
    return [cycle for graph in graphs for cycle in _cycle(graph)]


def _cycle(edges: list[tuple[str, str]]) -> list[str]:
    graph: dict[str, set[str]] = {}
    for importer, target in edges:
        graph.setdefault(importer, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["cycle: " + " ← ".join(error.args[1])]
    return []


def ban_breaches(found: list[Import]) -> list[str]:
    """List imports that a room must not make, whatever the rows say."""
    breaches = []
    for one in found:
        importer, room = inside(one.importer), room_name(one.importer)
        if within(one.target, BANNED.get(room, ())):
            breaches.append(str(one))
        for package, allowed in RESERVED.items():
            if within(one.target, [package]) and not within(importer, allowed):
                breaches.append(str(one))
    return breaches + _meetings(found)


def _meetings(found: list[Import]) -> list[str]:
    seen: dict[str, set[str]] = {}
    for one in filter(ours, found):
        seen.setdefault(inside(one.importer), set()).add(room_name(one.target))
    both = [name for name, rooms in seen.items() if {"memory", "residency"} <= rooms]
    return [f"{name} sees memory and residency" for name in both if name not in SEE_MEMORY_AND_RESIDENCY]


def lazy_breaches(found: list[Import]) -> list[str]:
    """List imports of ours inside functions where they are not allowed."""
    native = f"{PACKAGE}._native"
    local = [one for one in found if one.local and ours(one) and one.target != native]
    return [str(one) for one in local if not within(inside(one.importer), LAZY)]


def state_breaches(tree: list[Module]) -> list[str]:
    """List mutable values in module names (unless declared read-only) and `global` statements."""
    breaches = []
    for module in tree:
        breaches += [
            f"{module.name}:{node.lineno} global"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Global)
        ]
        for node in _import_time(module.tree.body):
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and _keeps_mutable(node):
                breaches.append(f"{module.name}:{node.lineno} {ast.unparse(node)[:60]}")
    return breaches


def _import_time(body: list[ast.stmt]) -> Iterable[ast.stmt]:
    """Yield the statements that run when a module is imported, also those inside if, try, with and for."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from _import_time(getattr(node, part, []))


def _keeps_mutable(node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> bool:
    if isinstance(node, ast.AugAssign):
        return True
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    if [ast.unparse(target) for target in targets] == ["__all__"]:
        return False
    if isinstance(node, ast.AnnAssign) and READ_ONLY.search(ast.unparse(node.annotation)):
        return False
    value = node.value
    if isinstance(value, ast.Call):
        called = ast.unparse(value.func).removeprefix("collections.")
        return called.split("[")[0].split(".")[0] in MAKES_MUTABLE
    return isinstance(value, DISPLAYS)


def work_breaches(tree: list[Module]) -> list[str]:
    """List calls for their effect and reads of the environment at import time."""
    breaches = []
    for module in tree:
        if room_name(module.name) in ("cli", "cli_bench", "cli_disk", "__main__"):
            continue
        for node in _import_time(module.tree.body):
            effect = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            simple = isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign)
            if effect or (simple and re.search(r"\benviron\b|\bgetenv\b", ast.unparse(node))):
                breaches.append(f"{module.name}:{node.lineno} {ast.unparse(node)[:60]}")
    return breaches


def file_breaches(paths: Iterable[Path]) -> list[str]:
    """List files that are too long."""
    lengths = ((path, len(path.read_text().splitlines())) for path in paths)
    return [f"{path}: {lines} lines" for path, lines in lengths if lines > MAX_FILE_LINES]


def function_breaches(tree: list[Module]) -> list[str]:
    """List functions that are too long, their docstrings not counted."""
    breaches = []
    for module in tree:
        for node in functions(module.tree):
            lines = (node.end_lineno or 0) - node.lineno + 1 - _docstring_lines(node)
            if lines > MAX_FUNCTION_LINES:
                breaches.append(f"{module.name}:{node.lineno} {node.name}: {lines} lines")
    return breaches


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if ast.get_docstring(node) is None:
        return 0
    return (first.end_lineno or 0) - first.lineno + 1
