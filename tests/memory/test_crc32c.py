"""CRC-32C: known values, both paths, any length, alignment and continuation."""

import numpy as np
import pytest

from tokenvm.memory.cpu import crc32c, native


def crc_bit_by_bit(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # RFC 3720, B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_published_values(data: bytes, expected: int) -> None:
    buffer = np.frombuffer(data + b"\0", np.uint8)
    assert crc32c(buffer.ctypes.data, len(data)) == expected
    assert native().crc32c_portable(buffer.ctypes.data, len(data)) == expected
    assert crc_bit_by_bit(data) == expected


LENGTHS = [
    1,
    7,
    8,
    9,
    255,
    256,
    257,
    511,
    512,
    513,
    767,
    768,
    769,
    4096,
    12287,
    12288,
    12289,
    12288 + 768 + 11,
    50000,
]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shift", [0, 1, 5])
def test_every_path_agrees(length: int, shift: int) -> None:
    data = np.random.default_rng(length).integers(0, 256, length + shift, dtype=np.uint8)
    address = data.ctypes.data + shift
    fast = crc32c(address, length)
    assert fast == native().crc32c_portable(address, length)
    if length < 1000:
        assert fast == crc_bit_by_bit(data[shift:].tobytes())


@pytest.mark.parametrize("cut", [0, 1, 300, 12288, 50000])
def test_continues_from_a_prefix(cut: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, 50000, dtype=np.uint8)
    address = data.ctypes.data
    for function in (native().crc32c, native().crc32c_portable):
        assert function(address + cut, 50000 - cut, function(address, cut)) == crc32c(address, 50000)
