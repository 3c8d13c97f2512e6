"""Whether what is installed works here: the build, a kernel against its reference, a tier on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from tokenvm.bridges.paged_memory import PagedMemory
from tokenvm.config import MemoryConfig
from tokenvm.errors import TokenVMError
from tokenvm.kernels import reference
from tokenvm.kernels.attention import attend
from tokenvm.kernels.native import isa
from tokenvm.kernels.paging import PartGeometry, write_part
from tokenvm.kernels.state import AttentionState
from tokenvm.tensors import PagedTensor

_DISK_BYTES: Final = 64 << 20
_DEVICE_BYTES: Final = 16 << 20

Say = Callable[[str], None]


def verify_installation(say: Say | None = None) -> bool:
    """Check the build, attention against its reference, and the disk; tell each, and return whether all is well.

    `say` hears a line for each check; without it they are printed.
    """
    speak = say or _print
    well = True
    for name, check in (("build", _build), ("attention", _attention), ("disk", _disk)):
        try:
            speak(f"{name:10} ok: {check()}")
        except (TokenVMError, AssertionError) as error:
            well = False
            speak(f"{name:10} FAILED: {error}")
    speak("TokenVM works here." if well else "TokenVM does not work here: see above.")
    return well


def _build() -> str:
    return f"native kernels use {isa()}"


def _attention() -> str:
    """Attend a page of random keys and values natively and by the reference."""
    geometry = PartGeometry(2, 16, 16, torch.float32)
    seed = torch.Generator().manual_seed(0)
    q = torch.randn(3, 4, 16, generator=seed)
    k, v = (torch.randn(2, 16, 16, generator=seed) for _ in range(2))
    page = torch.zeros(geometry.part_bytes // 4 + 16)
    address = -(-page.data_ptr() // 64) * 64
    write_part(address, geometry, k, v)
    segments, first = np.array([[0, 3, 0, 1]], np.int32), np.zeros(1, np.int32)
    outs = []
    for compute in (attend, reference.attend):
        state = AttentionState.empty(3, 4, 16)
        compute(
            state,
            q,
            torch.tensor([5, 9, 15]),
            segments,
            first,
            np.array([address], np.uint64),
            geometry,
            0.25,
        )
        outs.append(state.finish(torch.float32)[0])
    difference = float((outs[0] - outs[1]).abs().max())
    assert difference < 1e-5, f"attention differs from its reference by {difference}"
    return f"differs from its reference by {difference:.1e}"


def _disk() -> str:
    """Write a tensor four times the device, and read it back."""
    config = MemoryConfig(vram_limit=_DEVICE_BYTES, nvme_limit=4 * _DISK_BYTES, compression="none")
    with PagedMemory(config) as memory:
        want = torch.arange(_DISK_BYTES // 4, dtype=torch.int32)
        began_s = time.perf_counter()
        tensor = PagedTensor.of(want)
        written_s = time.perf_counter()
        same = torch.equal(tensor.tensor(), want)
        read_s = time.perf_counter() - written_s
        moved = memory.stats()["moved_bytes"]
    assert same, "what was read back is not what was written"
    rate = (moved["nvme_read"] + moved["h2d"]) / read_s / 1e6
    return f"{_DISK_BYTES >> 20} MiB came back, {rate:.0f} MB/s read, written in {written_s - began_s:.2f} s"


def _print(line: str) -> None:
    print(line)  # noqa: T201 - its purpose
