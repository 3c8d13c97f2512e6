"""A forked child leaves the threads of its parent alone: it ends, and says why it cannot use them."""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from rig import DEVICE, DISK, RING_SLOTS, Rig, move

from tokenvm.memory.cpu import CpuDevice
from tokenvm.vocab import Answer

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

LONGEST_S = 60
"""After this a child counts as hung, and is killed."""


def exit_code_in_a_fork(act: Callable[[], None]) -> int:
    """Fork, run `act` in the child: 0 if it came back, 1 if it raised, -SIGKILL if it hung."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)  # the child holds the other one: its end is the end of the pipe
    if not select.select([reader], [], [], LONGEST_S)[0]:
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def refuses(call: Callable[[], object]) -> None:
    with pytest.raises(
        RuntimeError, match=f"process {os.getppid()} owns these I/O threads.*make a new device"
    ):
        call()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(CpuDevice(threads=2), tmp_path)
    rig.store_pages(DISK)
    return rig


def test_a_child_that_collects_everything_ends_and_the_parent_goes_on(tmp_path: Path) -> None:
    rigs = [Rig(CpuDevice(threads=2), tmp_path)]
    rigs[0].store_pages(DISK)
    gone = weakref.ref(rigs[0].ring)

    def collect() -> None:
        rigs.clear()
        gc.collect()
        assert gone() is None

    assert exit_code_in_a_fork(collect) == 0
    parent = rigs[0]
    assert parent.run(move(0, DISK, 0, DEVICE, 0)) is Answer.HIT
    assert parent.holds(0, 0)
    first = parent.engine.stream(parent.engine.program([DISK], [1], [0]))
    assert parent.ring.wait(first + 1) is Answer.HIT
    parent.close()


def test_a_child_may_close_what_it_inherited(rig: Rig) -> None:
    def close() -> None:
        rig.close()
        rig.backend.close()

    assert exit_code_in_a_fork(close) == 0
    assert rig.run(move(0, DISK, 0, DEVICE, 0)) is Answer.HIT, "the parent's files and threads are its own"
    rig.close()


def test_a_child_is_told_that_the_threads_are_not_its_own(rig: Rig) -> None:
    ended = rig.engine.submit([move(0, DISK, 0, DEVICE, 0)])
    ended.wait()
    program = rig.engine.program([DISK] * RING_SLOTS, range(RING_SLOTS), [0])
    first = rig.engine.stream(program)
    unasked = rig.engine.submit([move(1, DISK, 1, DEVICE, 1)])

    def use() -> None:
        assert ended.wait() is Answer.HIT, "what the parent heard before is known"
        refuses(lambda: rig.engine.submit([move(2, DISK, 2, DEVICE, 2)]))
        refuses(unasked.poll)
        refuses(unasked.wait)
        refuses(unasked._batch.wait)
        refuses(unasked._batch.result)
        refuses(lambda: rig.engine.stream(program))
        refuses(lambda: rig.ring.wait(first + 1))
        refuses(lambda: rig.ring.release(first))
        refuses(rig.ring.cancel)
        refuses(rig.backend.moved_bytes)
        refuses(lambda: rig.backend.ring(rig.region.address, 1, 4096))

    assert exit_code_in_a_fork(use) == 0
    assert unasked.wait() is Answer.HIT
    assert rig.ring.wait(first + RING_SLOTS) is Answer.HIT
    rig.close()


def test_a_child_may_make_a_device_of_its_own(rig: Rig, tmp_path: Path) -> None:
    def make() -> None:
        own = Rig(CpuDevice(threads=2), tmp_path / "child")
        own.store_pages(DISK, 2)
        assert own.run(move(0, DISK, 1, DEVICE, 0)) is Answer.HIT
        assert own.holds(0, 1)
        own.close()

    assert exit_code_in_a_fork(make) == 0
    rig.close()


def test_a_child_whose_interpreter_ends_exits_with_0() -> None:
    code = (
        "import os, sys\n"
        "from tokenvm.memory.cpu import CpuDevice\n"
        "device = CpuDevice(); region = device.allocate(8192); ring = device.ring(region.address, 2, 4096)\n"
        "child = os.fork()\n"
        "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        assert process.wait(LONGEST_S) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
