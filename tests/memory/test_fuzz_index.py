"""The parser of heads and records meets bytes that nobody wrote."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from fuzz_index import HEAD, SEED, feed, made_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenvm.memory.page_format import Verdict

HARNESS = Path(__file__).parent / "fuzz_index.py"
RUNS = 20_000


def test_the_harness_reaches_what_lies_behind_the_checksums() -> None:
    assert made_of(b"\x03") == SEED
    assert feed(b"\x03") == (Verdict.GOOD, 8)
    assert feed(b"\x00") == (Verdict.DAMAGED, 0)
    assert feed(b"\x02" + (8).to_bytes(2, "little") + b"\x07") == (Verdict.FOREIGN, 0)
    second_slot = 4096 + HEAD.geometry.record_bytes + 24
    assert feed(b"\x03" + second_slot.to_bytes(2, "little") + b"\xff") == (Verdict.GOOD, 1), (
        "what goes on is an orphan"
    )


@given(
    st.integers(0, 3), st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), max_size=40)
)
@example(3, [(4096 + 56 + at, 1) for at in range(16)])  # the first page goes on from itself
@settings(max_examples=300, deadline=None)
def test_any_change_is_taken_without_a_word(how: int, changes: list[tuple[int, int]]) -> None:
    feed(bytes([how]) + b"".join(at.to_bytes(2, "little") + bytes([value]) for at, value in changes))


def test_libfuzzer_finds_nothing() -> None:
    ran = subprocess.run(
        [sys.executable, str(HARNESS), f"-runs={RUNS}", "-seed=1", "-max_len=600"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert re.search(rf"Done {RUNS} ", ran.stderr), ran.stderr[-500:]
