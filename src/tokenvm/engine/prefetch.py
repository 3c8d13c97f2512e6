"""How far ahead pages are read, by what the configuration says."""

from __future__ import annotations

from tokenvm.config import MemoryConfig


def reads_in_flight(memory: MemoryConfig) -> int:
    """Return how many reads may be under way at once."""
    return 4 if memory.prefetch_depth == "auto" else memory.prefetch_depth


def layers_ahead(memory: MemoryConfig) -> int | None:
    """Return how many layers before it is attended a part is read; None: as far ahead as the ring reaches."""
    if memory.prefetch_strategy == "none":
        return 0
    return None if memory.prefetch_ahead == "auto" else memory.prefetch_ahead
