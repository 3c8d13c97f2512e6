"""Feeds bytes to the parser of heads and records; run as a program, libFuzzer (atheris) makes them up.

`python tests/memory/fuzz_index.py -max_total_time=60` goes on for a minute. What it must not do: raise, hand out a
record that cannot be, take more memory than the bytes it was given, or put a page before the page it goes on from.
"""

from __future__ import annotations

import sys

import numpy as np

from tokenvm.memory import page_format
from tokenvm.memory.page_format import (
    HEAD_BYTES,
    PAGE,
    Geometry,
    Head,
    Verdict,
    read_head,
    read_records,
    record_type,
)
from tokenvm.memory.recovery import recover

LAYERS = 3
HEAD = Head(Geometry(LAYERS, 8192, 4096, "bitpack"), 4, 12, 7, 5)
KIND = record_type(LAYERS)


def seed_file() -> bytes:
    """A head and records that are right: a chain of pages and an empty slot."""
    rows = np.zeros(9, KIND)
    rows["kind"], rows["generation"] = PAGE, HEAD.generation
    rows["number"] = np.arange(1, 10)
    rows["slot"] = np.arange(9)
    rows["key"] = np.arange(1, 10)[:, None]
    rows["parent"] = np.arange(0, 9)[:, None]
    rows["kind"][8] = page_format.EMPTY
    page_format.seal_records(rows)
    return HEAD.pack() + rows.tobytes()


SEED = seed_file()


def made_of(data: bytes) -> bytes:
    """Return a file: the bytes as they are, or the right one changed in places, with or without right checksums."""
    if not data:
        return data
    how, rest = data[0] % 4, data[1:]
    if how == 0:
        return rest
    file = bytearray(SEED)
    for at in range(0, len(rest) - 2, 3):
        file[int.from_bytes(rest[at : at + 2], "little") % len(file)] = rest[at + 2]
    if how >= 2:
        file[HEAD_BYTES - 4 : HEAD_BYTES] = page_format.checksum_of(bytes(file[: HEAD_BYTES - 4])).to_bytes(
            4, "little"
        )
    if how == 3:
        rows = np.frombuffer(bytes(file[HEAD_BYTES:]), KIND).copy()
        page_format.seal_records(rows)
        file[HEAD_BYTES:] = rows.tobytes()
    return bytes(file)


def feed(data: bytes) -> tuple[Verdict, int]:
    """Parse what the bytes make; return the verdict and how many pages came out. AssertionError where that is wrong."""
    file = made_of(data)
    verdict, head = read_head(file[:HEAD_BYTES])
    if verdict is not Verdict.GOOD:
        return verdict, 0
    body = np.frombuffer(file, np.uint8)[HEAD_BYTES:]
    assert head.geometry.record_bytes <= 96 + 4 * 4096 + 512 + 8
    rows, damaged = read_records(body, 0, head)
    assert len(rows) + damaged <= len(body) // head.geometry.record_bytes
    assert (rows["slot"] < head.capacity).all()
    pages = rows[rows["kind"] == PAGE]
    _, first = np.unique(np.ascontiguousarray(pages["key"]).view("S16").ravel(), return_index=True)
    pages = pages[np.sort(first)]
    found = recover(pages, bytes(16), 0.0, np.ones(len(pages), bool))
    seen = {page_format.NO_KEY}
    for key, parent in zip(found.keys, found.parents, strict=True):
        assert parent in seen, "a page came before the page it goes on from"
        seen.add(key)
    assert sorted(found.idle_order) == list(range(len(found.pages)))
    return verdict, len(found.pages)


def main() -> None:
    """Let libFuzzer make up bytes for as long as its options say."""
    import atheris

    def one(data: bytes) -> None:
        feed(data)

    atheris.instrument_func(read_head)
    atheris.instrument_func(read_records)
    atheris.instrument_func(recover)
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
