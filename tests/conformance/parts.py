"""Copies of 4 KiB parts in a few words, and the fixtures of both backend suites."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenvm.memory.backend import Check, Copies, DeviceBackend, Kind, Program
from tokenvm.memory.cpu import crc32c

PART = 4096


def bytes_at(address: int, nbytes: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def pattern(nbytes: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def checksums_of(data: NDArray[np.uint8]) -> NDArray[np.uint32]:
    base = data.ctypes.data
    return np.array([crc32c(base + i, PART) for i in range(0, data.size, PART)], np.uint32)


def copies(
    kind: Kind,
    fd: int,
    places: list[int],
    addresses: list[int],
    checksums: NDArray[np.uint32] | None = None,
    check: Check = Check.COMPUTE,
    nbytes: int = PART,
) -> Copies:
    n = len(places)
    return Copies(
        kind=np.full(n, kind, np.uint8),
        check=np.full(n, check, np.uint8),
        fd=np.full(n, fd, np.int32),
        place=np.array(places, np.uint64),
        address=np.array(addresses, np.uint64),
        nbytes=np.full(n, nbytes, np.uint64),
        checksum=np.zeros(n, np.uint32) if checksums is None else checksums,
    )


def program(
    fd: int, places: list[int], checksums: NDArray[np.uint32], kind: Kind = Kind.READ, nbytes: int = PART
) -> Program:
    c = copies(kind, fd, places, [0] * len(places), checksums, Check.VERIFY, nbytes)
    return Program(c.kind, c.check, c.fd, c.place, c.nbytes, c.checksum)


class OnBackend:
    """Inherit and give `make`."""

    make: Callable[[], DeviceBackend]

    @pytest.fixture
    def device(self) -> Iterator[DeviceBackend]:
        device = type(self).make()
        yield device
        device.close()

    @pytest.fixture
    def file(self, tmp_path: Path) -> Iterator[int]:
        fd = os.open(tmp_path / "slab", os.O_RDWR | os.O_CREAT)
        yield fd
        os.close(fd)
