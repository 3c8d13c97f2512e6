"""How much of a prefix that was found is worth having, and which of its pages come to the device. Decides only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tokenvm.residency.ledger import Ledger
from tokenvm.residency.planner import Pages, choose_idle, streamed
from tokenvm.residency.policy.base import Policy
from tokenvm.vocab import Tier, UnitId


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast pages are read from disk and tokens are computed, as measured; 0 while nobody knows."""

    read_bytes_per_s: float
    prefill_tokens_per_s: float


def worth_reading(nbytes: int, read_bytes_per_s: float, tokens: int, prefill_tokens_per_s: float) -> bool:
    """Whether reading the KV of so many tokens takes no longer than computing it. A rate of 0 is not known: read."""
    if not read_bytes_per_s or not prefill_tokens_per_s:
        return True
    return nbytes / read_bytes_per_s <= tokens / prefill_tokens_per_s


def worthwhile_pages(tiers: Sequence[Tier], page_bytes: int, block_tokens: int, rates: Rates) -> int:
    """Return how many of the leading pages to take: those that can be had sooner than computed.

    `tiers` are where the pages lie, in position order; only those on disk cost time. A prefix has no holes, so pages
    that are not worth reading are taken where those behind them make up for it.
    """
    taken = to_read = 0
    for count, tier in enumerate(tiers, 1):
        to_read += tier is Tier.DISK
        tokens = (count - taken) * block_tokens
        if worth_reading(to_read * page_bytes, rates.read_bytes_per_s, tokens, rates.prefill_tokens_per_s):
            taken, to_read = count, 0
    return taken


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Pages that should come to the device, in position order, and how many of its slots idle ones have to leave."""

    units: tuple[UnitId, ...]
    displaced: int

    @classmethod
    def choose(
        cls,
        prefix: Sequence[UnitId],
        keep_free: int,
        ledger: Ledger,
        policy: Policy[UnitId],
        running: Sequence[Pages],
    ) -> Self:
        """Choose the oldest pages of a prefix that lie below, as many as find room beside `keep_free` slots.

        Room is what is free, and what pages that neither run nor belong to the prefix can leave with a copy below.
        """
        wanted = [unit for unit in prefix if streamed(unit, ledger)]
        if not wanted:
            return cls((), 0)
        needed = {unit for pages in running for unit in pages} | set(prefix)
        free = ledger.free(Tier.DEVICE) - keep_free
        displaced = min(
            max(0, len(wanted) - free), len(choose_idle(len(wanted) - free, ledger, policy, needed))
        )
        units = tuple(wanted[: max(0, free + displaced)])
        return cls(units, displaced if units else 0)
