"""Reads Markdown: what it names in code, and whether that exists."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
SUFFIXES = (
    "py",
    "md",
    "cpp",
    "hpp",
    "h",
    "cmake",
    "toml",
    "txt",
    "sh",
    "yml",
    "yaml",
    "json",
    "html",
    "css",
    "js",
    "lock",
)
REPOSITORY_PATH = re.compile(rf"[\w.][\w./-]*\.(?:{'|'.join(SUFFIXES)})")
BARE = (".py", ".md", ".cpp", ".hpp")
SHELLS = ("", "sh", "bash", "console", "shell", "text")
COMMAND = re.compile(
    r"^(?:[$>] )?(?:\w+=\S* )*(?:\S*python3? -m |\S*/)?(?P<program>tokenvm|make)(?P<rest>(?: .*)?)$"
)


@dataclass(frozen=True)
class Command:
    """A command of the program: what it understands after its name."""

    options: frozenset[str] = frozenset()
    commands: Mapping[str, Command] = field(default_factory=dict)


def paths(text: str) -> list[str]:
    """List the names in backticks that look like files of the repository."""
    prose = FENCE.sub("", text)
    named = [name.partition("::")[0] for name in INLINE.findall(prose)]
    return [
        name for name in named if REPOSITORY_PATH.fullmatch(name) and ("/" in name or name.endswith(BARE))
    ]


def missing_paths(root: Path, document: Path) -> list[str]:
    """List what a document names, in backticks or as a link, and the repository does not have."""
    text = document.read_text()
    present = [f"/{path.relative_to(root).as_posix()}" for path in files(root)]
    gone = [name for name in paths(text) if not any(path.endswith(f"/{name}") for path in present)]
    links = [link for link in LINK.findall(FENCE.sub("", text)) if "://" not in link and ":" not in link]
    return gone + [link for link in links if not (document.parent / link).exists()]


def files(root: Path) -> list[Path]:
    """List the files of the repository, without what is built or installed."""
    folders = ("src", "csrc", "tests", "docs", "scripts", "benchmarks", "examples", ".ci", ".github")
    below = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    return below + [path for path in root.iterdir() if path.is_file()]


def lines_of_code(text: str) -> Iterator[str]:
    """Yield shell lines: inline code and fenced blocks that are no program text."""
    yield from INLINE.findall(FENCE.sub("", text))
    for language, block in FENCE.findall(text):
        if language in SHELLS:
            yield from block.replace("\\\n", " ").splitlines()


def commands(text: str) -> list[tuple[str, list[str]]]:
    """List every `tokenvm ...` and `make ...` as (program, words)."""
    found = []
    for line in lines_of_code(text):
        for part in re.split(r"&&|\|\||[;|]", line.split(" #")[0]):
            if match := COMMAND.match(part.strip()):
                found.append((match["program"], match["rest"].split()))
    return found


def unknown_commands(text: str, program: Command, targets: set[str]) -> list[str]:
    """List commands, options and targets that a text mentions and that do not exist."""
    unknown = []
    for name, words in commands(text):
        if name == "make":
            unknown += [f"make {word}" for word in words if re.fullmatch(r"[a-z][\w-]*", word)
                        and word not in targets]  # fmt: skip
        else:
            unknown += _unknown_words(program, words)
    return unknown


def _unknown_words(command: Command, words: list[str]) -> list[str]:
    said = "tokenvm"
    unknown: list[str] = []
    for word in words:
        option = word.partition("=")[0]
        if command.commands and re.fullmatch(r"[a-z][\w-]*", word):
            said += f" {word}"
            if word not in command.commands:
                return [*unknown, said]
            command = command.commands[word]
        elif re.fullmatch(r"--?[A-Za-z][\w-]*", option) and option not in command.options | {"--help"}:
            unknown.append(f"{said} {option}")
    return unknown


def make_targets(makefile: str) -> set[str]:
    """Return the targets of a Makefile."""
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE))


def typer_command(command: Any) -> Command:
    """Describe a Typer (Click) command and those below it."""
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    below = {name: typer_command(one) for name, one in getattr(command, "commands", {}).items()}
    return Command(frozenset(options), below)
