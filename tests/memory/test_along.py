"""Pages copied down layer by layer, on threads and on simulated races."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rig import DEVICE, DISK, HOST, LAYOUT, Rig, content_of, move

from tokenvm.memory.backend import DeviceBackend, Kind
from tokenvm.memory.cpu import CpuDevice
from tokenvm.memory.sim import SimDevice
from tokenvm.vocab import Answer

BACKENDS: list[Callable[[], DeviceBackend]] = [
    CpuDevice,
    *(lambda seed=seed: SimDevice(seed) for seed in range(4)),
]
MOVES = [move(0, DEVICE, 2, DISK, 3), move(1, DEVICE, 0, HOST, 1), move(2, DEVICE, 5, DISK, 4)]


@pytest.fixture(params=BACKENDS, ids=["cpu", "sim-0", "sim-1", "sim-2", "sim-3"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(request.param(), tmp_path)
    yield rig
    rig.close()


def test_each_layer_is_copied_as_it_is_when_it_starts(rig: Rig) -> None:
    """Later layers may be written until they start: what is on its way is final."""
    transfer, along = rig.engine.submit_along(MOVES)
    for layer in range(LAYOUT.layers):
        for made in MOVES:
            rig.backend.writing(rig.arena.addresses(made.source_slot, layer))
            rig.part(made.source_slot, layer)[:] = content_of(made.unit, layer)
        assert not along.complete
        assert transfer.poll() is Answer.IN_FLIGHT
        along.start(layer)
    assert along.complete
    assert transfer.wait() is Answer.HIT
    assert transfer.failed == ()
    for made in MOVES:
        assert rig.run(move(made.unit, made.target, made.target_slot, DEVICE, 1)) is Answer.HIT
        assert rig.holds(1, made.unit)


def test_layers_that_are_passed_over_start_with_the_next(rig: Rig) -> None:
    for made in MOVES:
        rig.write(made.source_slot, made.unit)
    transfer, along = rig.engine.submit_along(MOVES)
    along.start(LAYOUT.layers - 1)
    along.start(LAYOUT.layers - 1)
    assert along.complete
    while transfer.poll() is Answer.IN_FLIGHT:
        pass
    assert transfer.failed == ()
    moved = rig.engine.moved_bytes
    assert (moved["nvme_write"], moved["d2h"]) == (2 * LAYOUT.page_bytes, LAYOUT.page_bytes)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_what_has_not_started_when_it_is_waited_for_never_does(rig: Rig, layers: int) -> None:
    for made in MOVES:
        rig.write(made.source_slot, made.unit)
    transfer, along = rig.engine.submit_along(MOVES)
    for layer in range(layers):
        along.start(layer)
    assert transfer.wait() is Answer.MISS
    assert transfer.failed == tuple(MOVES)
    along.start(LAYOUT.layers - 1)
    moved = rig.engine.moved_bytes
    assert moved["nvme_write"] == 2 * layers * LAYOUT.part_stride
    assert rig.run(move(0, DISK, 3, DEVICE, 1)) is Answer.MISS, "no checksum was recorded"


def test_one_part_that_fails_fails_its_page_alone(tmp_path: Path) -> None:
    device = SimDevice(0)
    rig = Rig(device, tmp_path)
    bad = rig.arena.address(5, 1)
    device.fail_when(lambda copy: copy.kind is Kind.WRITE and copy.address == bad)
    transfer, along = rig.engine.submit_along(MOVES)
    for layer in range(LAYOUT.layers):
        along.start(layer)
    assert transfer.failed == (MOVES[2],)
    assert np.count_nonzero(rig.disk.checksums[3]) == LAYOUT.layers
    assert not rig.disk.checksums[4].any()
    rig.close()
