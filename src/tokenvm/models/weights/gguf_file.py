"""The GGUF container: metadata and where each tensor's bytes lie.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). Every
length is checked against the end of the file before it is believed, so that a damaged file is an error and
never an endless loop.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from tokenvm.errors import ModelError

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MAX_DIMENSIONS: Final = 4
_CHUNK_ELEMENTS: Final = 1 << 22
_SCALARS: Final[Mapping[GGUFValueType, str]] = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
    GGUFValueType.BOOL: "<?",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies. `shape` has outputs first; `offset` is in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    nbytes: int


class GgufFile:
    """An open GGUF file; a context manager. Raises ModelError if it is missing, foreign or damaged."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ModelError(f"{path} does not exist: pass the path of a .gguf file") from None
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error
        try:
            self._parse()
        except BaseException:
            self._bytes.close()
            raise

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bytes.close()

    def rows(self, name: str, order: npt.NDArray[np.int64] | None = None) -> Iterator[torch.Tensor]:
        """Yield a tensor's rows, some megabytes at a time: fp32 [n, columns], in `order` or as stored."""
        tensor = self.tensors[name]
        count, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
        raw = np.frombuffer(self._bytes[tensor.offset : tensor.offset + tensor.nbytes], np.uint8).reshape(
            count, -1
        )
        step = max(1, _CHUNK_ELEMENTS // columns)
        for begin in range(0, count, step):
            picked = raw[begin : begin + step] if order is None else raw[order[begin : begin + step]]
            yield torch.from_numpy(self._values(picked, tensor))

    def _values(self, raw: npt.NDArray[np.uint8], tensor: GgufTensor) -> npt.NDArray[np.float32]:
        plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
        if tensor.kind in plain:
            return raw.view(plain[tensor.kind]).astype(np.float32)
        try:
            with np.errstate(all="ignore"):
                return np.ascontiguousarray(dequantize(raw, tensor.kind), np.float32)
        except NotImplementedError:
            raise ModelError(
                f"{self.path}: tensor {tensor.name} is stored as {tensor.kind.name}, which is not supported: "
                "pass a file quantised as Q4_0, Q4_1, Q8_0, a K-quant, F16, BF16 or F32"
            ) from None

    def _parse(self) -> None:
        cursor = _Cursor(self._bytes)
        try:
            if cursor.take(4) != _MAGIC:
                raise self._damaged("it does not start with GGUF")
            version = cursor.scalar("<I")
            if version not in _VERSIONS:
                raise self._damaged(f"version {version} is not 2 or 3")
            tensor_count, entries = cursor.scalar("<Q"), cursor.scalar("<Q")
            self.metadata = {cursor.string(): cursor.value() for _ in range(entries)}
            found = [cursor.tensor() for _ in range(tensor_count)]
            self.tensors = self._placed(found, cursor.position)
        except (_Truncated, ValueError, UnicodeDecodeError) as error:
            raise self._damaged(str(error)) from error

    def _placed(self, found: list[GgufTensor], header_bytes: int) -> dict[str, GgufTensor]:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._damaged(f"general.alignment is {alignment!r}")
        base = -(-header_bytes // alignment) * alignment
        placed: dict[str, GgufTensor] = {}
        for tensor in found:
            if tensor.name in placed:
                raise self._damaged(f"tensor {tensor.name} appears twice")
            if base + tensor.offset + tensor.nbytes > len(self._bytes):
                raise self._damaged(f"tensor {tensor.name} reaches past its end")
            placed[tensor.name] = GgufTensor(
                tensor.name, tensor.shape, tensor.kind, base + tensor.offset, tensor.nbytes
            )
        return placed

    def _damaged(self, reason: str) -> ModelError:
        return ModelError(f"{self.path} is damaged or not a GGUF file ({reason}): download the file again")


class _Truncated(Exception):  # noqa: N818 - private, turned into a ModelError at once
    """The file ends inside a value."""


class _Cursor:
    """Reads values one after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise _Truncated(f"it ends inside a value at byte {self.position}")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def scalar(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def string(self) -> str:
        return self.take(self.scalar("<Q")).decode("utf-8")

    def value(self) -> Any:
        return self._typed(GGUFValueType(self.scalar("<I")))

    def tensor(self) -> GgufTensor:
        """Read one entry of the tensor table; its offset still counts from the start of the data."""
        name = self.string()
        dimensions = self.scalar("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self.scalar("<Q") for _ in range(dimensions))[::-1]
        kind = GGMLQuantizationType(self.scalar("<I"))
        block_elements, block_bytes = GGML_QUANT_SIZES[kind]
        elements = math.prod(shape)
        if elements == 0 or shape[-1] % block_elements:
            raise ValueError(f"tensor {name} has shape {list(shape)}")
        return GgufTensor(name, shape, kind, self.scalar("<Q"), elements // block_elements * block_bytes)

    def _typed(self, kind: GGUFValueType) -> Any:
        if kind is GGUFValueType.STRING:
            return self.string()
        if kind is GGUFValueType.ARRAY:
            return self._array(GGUFValueType(self.scalar("<I")), self.scalar("<Q"))
        return self.scalar(_SCALARS[kind])

    def _array(self, kind: GGUFValueType, count: int) -> list[Any]:
        if kind is GGUFValueType.ARRAY:
            raise ValueError("it holds an array of arrays")
        if kind is GGUFValueType.STRING:
            return [self.string() for _ in range(count)]
        layout = _SCALARS[kind]
        packed = self.take(count * struct.calcsize(layout))
        return [value for (value,) in struct.iter_unpack(layout, packed)]
