"""Safetensors folders: one file, or shards named by an index. Tensors are read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from tokenvm.errors import ModelError
from tokenvm.json_file import read_json

_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_DTYPES: Final = ("BF16", "F16", "F32", "F64")


class Checkpoint:
    """The tensors of a model folder, memory-mapped; a context manager that closes the files.

    Raises ModelError, naming file and tensor, for what is missing, damaged or of another shape or dtype.
    """

    def __init__(self, folder: Path) -> None:
        self._files = ExitStack()
        self._where: dict[str, tuple[Path, Any]] = {}
        try:
            for path, names in _shards(folder).items():
                self._open(path, names)
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._where.clear()
        self._files.close()

    @property
    def names(self) -> frozenset[str]:
        """The tensors that are there."""
        return frozenset(self._where)

    def check(
        self, shapes: Iterable[tuple[str, tuple[int, ...]]], is_ignorable: Callable[[str], bool]
    ) -> None:
        """Raise ModelError unless exactly these tensors are there, with these shapes and a float dtype."""
        needed: set[str] = set()
        for name, shape in shapes:
            needed.add(name)
            path, reader = self._located(name)
            found = reader.get_slice(name)
            if tuple(found.get_shape()) != shape:
                raise ModelError(
                    f"{path}: tensor {name} has shape {list(found.get_shape())}, but config.json asks for "
                    f"{list(shape)}: use an unmodified copy of the model"
                )
            if found.get_dtype() not in _DTYPES:
                raise ModelError(
                    f"{path}: tensor {name} has dtype {found.get_dtype()}; "
                    f"supported are {', '.join(_DTYPES)}: pass a model that is not quantised"
                )
        unknown = sorted(name for name in self.names - needed if not is_ignorable(name))
        if unknown:
            raise ModelError(
                f"{self._where[unknown[0]][0]}: tensor {unknown[0]} (of {len(unknown)} such) is not part of "
                "a model of this architecture: pass another model"
            )

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored; its pages are read from the file when touched."""
        path, reader = self._located(name)
        try:
            tensor: torch.Tensor = reader.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
        return tensor

    def _located(self, name: str) -> tuple[Path, Any]:
        if name not in self._where:
            raise ModelError(f"tensor {name} is missing from the model's files: download the model again")
        return self._where[name]

    def _open(self, path: Path, names: frozenset[str]) -> None:
        try:
            reader = self._files.enter_context(safe_open(path, framework="pt"))
        except FileNotFoundError:
            raise ModelError(f"{path} does not exist: download the model again") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, error) from error
        present = frozenset(reader.keys())
        missing = sorted(names - present)
        if missing:
            raise ModelError(f"{path}: tensor {missing[0]} is missing: download the model again")
        self._where |= dict.fromkeys(names or present, (path, reader))


def _shards(folder: Path) -> dict[Path, frozenset[str]]:
    """File → the tensors its index promises; an empty set means all that the file holds."""
    if (folder / _SINGLE).is_file():
        return {folder / _SINGLE: frozenset()}
    index = folder / _INDEX
    if not index.is_file():
        raise ModelError(
            f"{folder} holds neither {_SINGLE} nor {_INDEX}: "
            "pass a folder with safetensors weights or a .gguf file"
        )
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ModelError(f"{index}: weight_map is missing: download the model again")
    shards: dict[Path, frozenset[str]] = {}
    for name, file in where.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ModelError(
                f"{index}: {name} lies in {file!r}, which is not a file name: download the model again"
            )
        shards[folder / file] = shards.get(folder / file, frozenset()) | {name}
    return shards


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path} is damaged or not a safetensors file ({error}): download the model again")
