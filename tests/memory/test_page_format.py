"""The format page and the code say the same; what is damaged, foreign or hostile is known as such."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenvm.memory import page_format
from tokenvm.memory.page_format import (
    HEAD_BYTES,
    PAGE,
    Geometry,
    Head,
    Verdict,
    index_file_bytes,
    pack_bits,
    read_head,
    read_records,
    record_places,
    record_type,
    seal_records,
    unpack_bits,
)

PAGE_TEXT = (Path(__file__).parents[2] / "docs" / "page-format.md").read_text()
HEAD = Head(Geometry(3, 8192, 4096, "bitpack"), 4, 12, 7, 5)


def table(heading: str) -> list[list[str]]:
    section = PAGE_TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [
        line.strip("| ").split(" | ") for line in section.splitlines() if re.match(r"\| \d|\| behind", line)
    ]
    return [[cell.strip("` ") for cell in row] for row in rows]


def test_the_head_is_what_the_page_says() -> None:
    g = HEAD.geometry
    values = {
        "magic": b"TVMPAGES",
        "version": 1,
        "layers": g.layers,
        "part_stride": g.part_stride,
        "far_bytes": g.far_bytes,
        "codec": g.codec.encode(),
        "slab_pages": HEAD.slab_pages,
        "capacity": HEAD.capacity,
        "generation": HEAD.generation,
        "checkpointed": HEAD.checkpointed,
    }
    block, rows = HEAD.pack(), table("The head of an index file")
    assert [row[2] for row in rows] == [*values, "head_checksum"]
    named = bytearray(HEAD_BYTES)
    for offset, size, name, *_ in rows[:-1]:
        raw = block[int(offset) : int(offset) + int(size)]
        named[int(offset) : int(offset) + int(size)] = raw
        value = values[name]
        assert (raw.rstrip(b"\0") if isinstance(value, bytes) else int.from_bytes(raw, "little")) == value
    assert named[: HEAD_BYTES - 4] == block[: HEAD_BYTES - 4], "unnamed bytes are 0"
    assert (int(rows[-1][0]), int(rows[-1][1])) == (HEAD_BYTES - 4, 4)
    assert read_head(block) == (Verdict.GOOD, HEAD)


@pytest.mark.parametrize("layers", [1, 3, 8, 30, 33])
def test_a_record_is_what_the_page_says(layers: int) -> None:
    kind = record_type(layers)
    expected = {}
    for offset, size, name, *_ in table("A record"):
        begin = 96 + 4 * layers if offset == "behind" else int(offset)
        length = {"4 * layers": 4 * layers, "ceil(layers / 8)": -(-layers // 8)}.get(size, 0) or int(size)
        expected[name] = (begin, length)
    assert {
        name: (kind.fields[name][1], kind.fields[name][0].itemsize)
        for name in kind.names
        if name != "padding"
    } == expected
    assert kind.itemsize == -(-(96 + 4 * layers + -(-layers // 8)) // 8) * 8
    assert "2 * capacity + 64" in PAGE_TEXT
    assert record_places(10) == 84
    assert index_file_bytes(Geometry(layers, 4096, 4096, "none"), 10) % 4096 == 0


def test_the_page_names_version_and_kinds() -> None:
    assert f"version {page_format.VERSION}." in PAGE_TEXT
    assert "1: a page lies in the slot; 2: the slot is empty" in PAGE_TEXT
    assert (page_format.PAGE, page_format.EMPTY) == (1, 2)


@given(st.integers(0, 8 * HEAD_BYTES - 1))
@settings(max_examples=200, deadline=None)
def test_any_flipped_bit_of_a_head_is_found(bit: int) -> None:
    block = bytearray(HEAD.pack())
    block[bit // 8] ^= 1 << bit % 8
    assert read_head(bytes(block))[0] is Verdict.DAMAGED


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        (12, 4, 0),
        (12, 4, 2**32 - 1),
        (16, 4, 0),
        (16, 4, 4097),
        (16, 4, 2**31),
        (20, 4, 8192 + 4096),
        (20, 4, 100),
        (24, 8, 0),
        (32, 8, 0),
        (32, 8, 5),
        (40, 8, 2**63),
        (40, 8, 13),
        (48, 8, 0),
        (56, 8, 13),
    ],
)
def test_a_number_out_of_bounds_is_damage_however_right_the_checksum(
    offset: int, size: int, value: int
) -> None:
    assert read_head(signed(offset, value.to_bytes(size, "little")))[0] is Verdict.DAMAGED


def signed(offset: int, data: bytes) -> bytes:
    """A head with other bytes somewhere and the checksum they need."""
    block = bytearray(HEAD.pack()[: HEAD_BYTES - 4])
    block[offset : offset + len(data)] = data
    return bytes(block) + page_format.checksum_of(bytes(block)).to_bytes(4, "little")


def test_other_versions_and_other_files_are_foreign() -> None:
    assert read_head(signed(8, (2).to_bytes(4, "little")))[0] is Verdict.FOREIGN
    assert read_head(signed(0, b"ELSEWHAT"))[0] is Verdict.FOREIGN
    assert read_head(bytes(HEAD_BYTES))[0] is Verdict.BLANK
    assert read_head(b"short")[0] is Verdict.DAMAGED


def some_records(count: int, generation: int = 7) -> np.ndarray:
    rows = np.zeros(count, record_type(3))
    rows["kind"], rows["generation"] = PAGE, generation
    rows["number"] = np.arange(1, count + 1)
    rows["slot"] = np.arange(count) % HEAD.capacity
    rows["checksums"] = np.random.default_rng(1).integers(0, 2**32, (count, 3))
    seal_records(rows)
    return rows


def flat(rows: np.ndarray) -> np.ndarray:
    return np.frombuffer(rows.tobytes(), np.uint8)


def test_records_come_back_and_those_left_over_mean_nothing() -> None:
    rows = np.concatenate([some_records(4), some_records(9, generation=6)[4:], np.zeros(3, record_type(3))])
    read, damaged = read_records(flat(rows), 0, HEAD)
    assert read.tobytes() == rows[:4].tobytes()
    assert damaged == 0


@given(st.integers(0, 5), st.integers(0, 8 * record_type(3).itemsize - 1))
@settings(max_examples=200, deadline=None)
def test_a_damaged_record_costs_itself_alone(at: int, bit: int) -> None:
    rows = some_records(6)
    data = bytearray(rows.tobytes())
    data[at * rows.dtype.itemsize + bit // 8] ^= 1 << bit % 8
    read, damaged = read_records(np.frombuffer(bytes(data), np.uint8), 0, HEAD)
    assert read["number"].tolist() == [number for number in range(1, 7) if number != at + 1]
    assert damaged == 1


@pytest.mark.parametrize(
    ("field", "value"), [("slot", 12), ("slot", 2**63), ("number", 9), ("kind", 3), ("kind", 0)]
)
def test_a_record_that_cannot_be_is_damage_however_right_its_checksum(field: str, value: int) -> None:
    rows = some_records(3)
    rows[field][1] = value
    seal_records(rows)
    read, damaged = read_records(flat(rows), 0, HEAD)
    assert (read["number"].tolist(), damaged) == ([1, 3], 1)


def test_a_record_moved_to_another_place_is_damage() -> None:
    rows = some_records(3)[[1, 0, 2]]
    read, damaged = read_records(flat(rows), 0, HEAD)
    assert (read["number"].tolist(), damaged) == ([3], 2)


@pytest.mark.parametrize("layers", [1, 7, 8, 30])
def test_bits_of_packed_parts_come_back(layers: int) -> None:
    packed = np.random.default_rng(layers).integers(0, 2, (5, layers)).astype(np.uint8)
    assert (unpack_bits(pack_bits(packed), layers) == packed).all()


@pytest.mark.parametrize(("generation", "verdict"), [(2**63 - 1, Verdict.GOOD), (2**63, Verdict.DAMAGED)])
def test_a_generation_that_none_could_follow_is_damage(generation: int, verdict: Verdict) -> None:
    head = Head(HEAD.geometry, HEAD.slab_pages, HEAD.capacity, generation, 0)
    assert read_head(head.pack())[0] is verdict
