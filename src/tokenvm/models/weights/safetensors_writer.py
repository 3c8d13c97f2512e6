"""Write a safetensors file of any size, one tensor at a time.

Format: https://github.com/huggingface/safetensors#format: 8 bytes header length, a JSON header, the data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import torch

_NAMES: Final[Mapping[torch.dtype, str]] = {torch.bfloat16: "BF16", torch.float32: "F32"}


class SafetensorsWriter:
    """A file of tensors whose shapes and dtypes (bf16 or fp32) are known; written in that order."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        self._file = path.open("wb")
        self._expected = [(name, math.prod(shape), dtype) for name, (shape, dtype) in tensors.items()]
        self._file.write(_header(tensors))

    def write(self, name: str, pieces: Iterable[torch.Tensor]) -> int:
        """Write the next tensor from consecutive pieces of any float dtype; returns the bytes written."""
        expected, elements, dtype = self._expected.pop(0)
        assert name == expected, f"{name} written where {expected} comes"
        written = 0
        for piece in pieces:
            stored = piece.to(dtype).contiguous().reshape(-1).view(torch.uint8)
            self._file.write(np.ascontiguousarray(stored.numpy()).data)
            written += stored.numel()
        assert written == elements * dtype.itemsize, f"{name} has {written} bytes"
        return written

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, flushed to the disk; without an error every tensor must have been written."""
        if error is None:
            assert not self._expected, f"{self._expected[0][0]} was not written"
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()


def _header(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, dtype) in tensors.items():
        end = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
