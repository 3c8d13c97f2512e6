"""An interrupt while somebody waits for copies loses none of their results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rig import DEVICE, DISK, HOST, Rig, move

from tokenvm.memory import transfer
from tokenvm.memory.backend import Status
from tokenvm.memory.cpu import CpuDevice, NativeBatch
from tokenvm.vocab import Answer


class Interrupted:
    """Native threads; one call is interrupted just after it came back, as the interpreter does on Ctrl-C."""

    def __init__(self, threads: Any, name: str) -> None:
        self._threads = threads
        self._name = name
        self.interrupts = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._threads, name)
        return self._interrupt(call) if name == self._name and not self.interrupts else call

    def _interrupt(self, call: Any) -> Any:
        def interrupted(*arguments: Any) -> None:
            call(*arguments)
            self.interrupts += 1
            raise KeyboardInterrupt

        return interrupted


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(CpuDevice(threads=2), tmp_path)
    yield rig
    rig.close()


def interrupt(rig: Rig, name: str) -> Interrupted:
    assert isinstance(rig.backend, CpuDevice)
    pool = rig.backend._pool
    pool.threads = Interrupted(pool.threads, name)
    return pool.threads


@pytest.mark.parametrize("name", ["wait", "take", "forget"])
def test_a_batch_answers_after_an_interrupt(rig: Rig, name: str) -> None:
    threads = interrupt(rig, name)
    lane = rig.engine._lanes([move(0, DEVICE, 0, HOST, 0)])[0]
    batch = rig.backend.copies().submit(lane.copies(), urgent=True)
    assert isinstance(batch, NativeBatch)
    with pytest.raises(KeyboardInterrupt):
        batch.wait() if name == "wait" else batch.result()
    assert threads.interrupts == 1
    assert batch.poll() is batch.wait() is Answer.HIT
    result = batch.result()
    assert (result.status == Status.LANDED).all()
    assert batch.result() is result
    with pytest.raises(IndexError):
        threads.poll(batch._number)  # the pool keeps nothing of it


@pytest.mark.parametrize("name", ["take", "forget"])
@pytest.mark.parametrize("again", ["poll", "wait"])
def test_a_transfer_answers_after_an_interrupt(rig: Rig, name: str, again: str) -> None:
    rig.store_pages(DISK, 3)
    rig.damage(slot=1, layer=2)
    interrupt(rig, name)
    moves = [move(i, DISK, i, DEVICE, i) for i in range(3)]
    ended = rig.engine.submit(moves)
    with pytest.raises(KeyboardInterrupt):
        ended.wait()
    assert getattr(ended, again)() is Answer.MISS
    assert ended.failed == (moves[1],)
    assert rig.holds(0, 0)
    assert rig.holds(2, 2)
    assert (rig.arena.checksums[[0, 2]] == rig.disk.checksums[[0, 2]]).all()


def test_a_transfer_interrupted_between_two_lanes_records_every_page(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slot in range(2):
        rig.write(slot, slot)
    ended = rig.engine.submit([move(0, DEVICE, 0, HOST, 0), move(1, DEVICE, 1, DISK, 1)])
    settle = transfer.Lane.settle
    settled: list[transfer.Lane] = []

    def interrupted(
        lane: transfer.Lane, status: NDArray[np.uint8], checksums: NDArray[np.uint32]
    ) -> NDArray[np.int64]:
        failed = settle(lane, status, checksums)
        settled.append(lane)
        if len(settled) == 1:
            raise KeyboardInterrupt
        return failed

    monkeypatch.setattr(transfer.Lane, "settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ended.wait()
    assert ended.wait() is Answer.HIT
    assert len(settled) == 3
    assert rig.host.checksums[0].all()
    assert rig.disk.checksums[1].all()
