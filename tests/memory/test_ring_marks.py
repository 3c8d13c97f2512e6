"""The native pool and ring against a model of their order and credits, on tiny rings."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenvm.memory.backend import Check, Copies, Kind, Program
from tokenvm.memory.cpu import AnonymousRegion, CpuDevice
from tokenvm.vocab import Answer

PART = 64
SOURCES = 11


def program(parts: list[int], source: int) -> Program:
    n = len(parts)
    return Program(
        kind=np.full(n, Kind.COPY_IN, np.uint8),
        check=np.full(n, Check.NONE, np.uint8),
        fd=np.full(n, -1, np.int32),
        place=np.array(parts, np.uint64) * np.uint64(PART) + np.uint64(source),
        nbytes=np.full(n, PART, np.uint64),
        checksum=np.zeros(n, np.uint32),
    )


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 9)),
        st.tuples(st.just("wait"), st.integers(0, 6)),
        st.tuples(st.just("release"), st.integers(0, 6)),
        st.tuples(st.just("cancel"), st.just(0)),
    ),
    max_size=30,
)


@pytest.fixture(scope="module")
def memory() -> AnonymousRegion:
    region = AnonymousRegion(SOURCES * PART)
    np.ctypeslib.as_array((ctypes.c_uint8 * (SOURCES * PART)).from_address(region.address))[:] = np.repeat(
        np.arange(1, SOURCES + 1, dtype=np.uint8), PART
    )
    return region


@pytest.mark.parametrize(
    ("slots", "threads", "read_bytes"), [(1, 1, 1), (3, 2, PART), (4, 3, 1 << 20), (9, 2, 3 * PART)]
)
def test_marks_obey_their_law(memory: AnonymousRegion, slots: int, threads: int, read_bytes: int) -> None:
    device = CpuDevice(threads, read_bytes)
    region = device.allocate(slots * PART)

    @settings(max_examples=60, deadline=None)
    @given(ACTIONS)
    def run(actions: list[tuple[str, int]]) -> None:
        ring = device.ring(region.address, slots, PART)
        tickets: list[int] = []  # ticket → source
        waited = released = 0
        for action, n in actions:
            if action == "submit":
                parts = [(len(tickets) * 3 + i) % SOURCES for i in range(n)]
                assert ring.submit(program(parts, memory.address)) == len(tickets)
                tickets += parts
            elif action == "wait":
                end = min(released + n, released + slots, len(tickets))
                assert ring.wait(end) is Answer.HIT
                waited = max(waited, end)
            elif action == "release":
                released = min(released + n, waited)
                ring.release(released)
            else:
                ring.cancel()
                waited = released = len(tickets)
            marks = ring.marks()
            assert marks[0] == released
            assert released <= waited <= marks[1] <= marks[2] <= marks[3] == len(tickets)
            assert marks[2] <= released + slots
            for ticket in range(released, waited):
                held = (ctypes.c_uint8 * PART).from_address(region.address + ticket % slots * PART)
                assert set(held) == {tickets[ticket] + 1}
        ring.cancel()

    run()
    device.close()


def batch_copies(sources: list[int], targets: list[int], nbytes: int) -> Copies:
    n = len(sources)
    return Copies(
        kind=np.full(n, Kind.COPY_IN, np.uint8),
        check=np.full(n, Check.NONE, np.uint8),
        fd=np.full(n, -1, np.int32),
        place=np.array(sources, np.uint64),
        address=np.array(targets, np.uint64),
        nbytes=np.full(n, nbytes, np.uint64),
        checksum=np.zeros(n, np.uint32),
    )


def test_runs_cut_short_by_credits_start_only_for_a_waiter(memory: AnonymousRegion) -> None:
    device = CpuDevice(threads=1, read_bytes=2 * PART)
    region = device.allocate(9 * PART)
    ring = device.ring(region.address, 8, PART)

    def settle() -> None:
        """Let the only thread pass over the ring: what can start there goes before write-behind."""
        behind = batch_copies([memory.address], [region.address + 8 * PART], PART)
        batch = device.copies().submit(behind, urgent=False)
        while batch.poll() is Answer.IN_FLIGHT:
            pass

    ring.submit(program(list(range(8)), memory.address))
    settle()
    assert ring.marks()[1] == 8, "nobody waits, but every run is whole"
    ring.submit(program(list(range(4)), memory.address))
    ring.release(1)
    settle()
    assert ring.marks()[2] == 8, "half a run of two is not worth a read of its own"
    ring.release(2)
    settle()
    assert ring.marks()[1:3] == (10, 10)
    ring.release(3)
    settle()
    assert ring.marks()[2] == 10
    assert ring.wait(11) is Answer.HIT, "half a run starts when somebody waits for it"
    device.close()


def test_reads_overtake_write_behind() -> None:
    big, count = 1 << 18, 64
    device = CpuDevice(threads=1, read_bytes=1)
    region = device.allocate((count + 2) * big)
    blocks = [region.address + i * big for i in range(count + 2)]
    slow = batch_copies([blocks[0]] * count, blocks[1:-1], big)

    def overtakes() -> bool:
        behind = device.copies().submit(slow, urgent=False)
        device.copies().submit(batch_copies([blocks[0]], [blocks[-1]], big), urgent=True).wait()
        return behind.poll() is Answer.IN_FLIGHT

    # On a bad day the write-behind has all run before the read is submitted; in turn it always would have.
    assert any(overtakes() for _ in range(50))
    device.close()


def test_memory_outlives_the_copies_that_nobody_waited_for(memory: AnonymousRegion) -> None:
    device = CpuDevice(threads=1, read_bytes=1)
    region = device.allocate(1 << 26)
    ring = device.ring(region.address, 4, PART)
    ring.submit(program(list(range(8)), memory.address))
    half = 1 << 25
    batch = device.copies().submit(
        batch_copies([region.address] * 8, [region.address + half] * 8, half), urgent=True
    )
    del region, ring, device  # whatever goes first, no thread writes into memory that is gone
    assert batch.wait() is Answer.HIT
