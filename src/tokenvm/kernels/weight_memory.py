"""Memory that the matrices of a model share, in huge pages where the system lends them."""

from __future__ import annotations

import contextlib
import mmap

import torch

_ALIGNMENT_BYTES = 64
_HUGE_PAGE_BYTES = 2 << 20


class WeightMemory:
    """Bytes taken one after another, never given back singly: what is read in order lies in order.

    Memory comes from the system in stretches of `stretch_bytes`, each from a multiple of 2 MiB on; what is not written
    takes none. It is returned when it and every tensor taken from it are gone.
    """

    def __init__(self, stretch_bytes: int = 64 << 20) -> None:
        self._stretch_bytes = stretch_bytes
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, nbytes: int) -> torch.Tensor:
        """Bytes (uint8 [nbytes]) from a multiple of 64 on, zero until they are written."""
        room = -(-nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        if room > self._free.numel():
            self._free = huge_bytes(max(room, self._stretch_bytes))
        taken, self._free = self._free[:nbytes], self._free[room:]
        return taken


def huge_bytes(nbytes: int) -> torch.Tensor:
    """Zero bytes, uint8 [nbytes], from a multiple of 2 MiB on, in huge pages where the system lends them.

    Pages of 4 KiB lie anywhere in physical memory, so that some drive each other out of the second-level cache.
    """
    memory = mmap.mmap(-1, nbytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without huge pages computes the same, a little slower
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE_PAGE_BYTES
    return whole[start : start + nbytes]
