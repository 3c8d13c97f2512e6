"""What a replay costs: bytes, and the time to the first token of a server that computes one prompt after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenvm.simulate.trace import BLOCK_TOKENS, Visit


@dataclass(frozen=True, slots=True)
class Costs:
    """A page's bytes, the link to the tier where pages are kept, and the rate at which prompts are computed.

    Requests arrive `speed` times as fast as in the trace; 0: each one alone, as if nobody else had come.
    """

    page_bytes: int
    read_bytes_per_s: float
    prefill_tokens_per_s: float
    speed: float = 1.0


@dataclass(slots=True)
class Bill:
    """What all requests of a replay cost together."""

    costs: Costs
    asked_pages: int = 0
    found_pages: int = 0
    ttft_s: list[float] = field(default_factory=list)
    _free_s: float = 0.0

    def enter(self, visit: Visit, found: int) -> None:
        """Enter one request that found so many leading pages, after those before it."""
        costs = self.costs
        self.asked_pages += len(visit.keys)
        self.found_pages += found
        tokens = max(1, visit.input_tokens - found * BLOCK_TOKENS)  # the last token is always computed
        work_s = found * costs.page_bytes / costs.read_bytes_per_s + tokens / costs.prefill_tokens_per_s
        if not costs.speed:
            self.ttft_s.append(work_s)
            return
        arrival_s = visit.arrival_s / costs.speed
        self._free_s = max(self._free_s, arrival_s) + work_s
        self.ttft_s.append(self._free_s - arrival_s)

    @property
    def hit_rate(self) -> float:
        """Leading pages found / pages asked for."""
        return self.found_pages / max(1, self.asked_pages)

    def as_dict(self) -> dict[str, float]:
        """Return it as plain values; every page that was computed is written once."""
        return {
            "hit_rate": self.hit_rate,
            "read_bytes": self.found_pages * self.costs.page_bytes,
            "written_bytes": (self.asked_pages - self.found_pages) * self.costs.page_bytes,
            "ttft_p50_s": quantile(self.ttft_s, 0.5),
            "ttft_p99_s": quantile(self.ttft_s, 0.99),
        }


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that so many of all do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
