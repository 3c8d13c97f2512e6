"""What an engine will take and hold, before it takes anything: bytes by purpose and tier, sequences by length."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from tokenvm.engine.budget import Budget, Needs

SHORTER: Final = (1, 4, 16)
"""Lengths that a plan speaks of: these fractions of the longest."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How many sequences of `tokens` tokens, prompt and answer, may run at once.

    `resident` of them have all their pages on the device; `in_all` the tiers hold together, the rest being streamed.
    """

    tokens: int
    resident: int
    in_all: int


@dataclass(frozen=True, slots=True)
class StartupPlan:
    """The memory of an engine, taken once when it starts, and what that is enough for.

    Weights, workspace, device pages and ring are on the device: on a CPU, in RAM. Pages have `block_tokens` tokens and
    `page_bytes` bytes. The largest batch has `largest_batch_rows` rows, of which `max_num_seqs` sample a token.
    """

    weight_bytes: int
    workspace_bytes: int
    page_bytes: int
    block_tokens: int
    device_pages: int
    ring_bytes: int
    host_pages: int
    disk_pages: int
    max_model_len: int
    max_num_seqs: int
    largest_batch_rows: int
    open_slots: int
    threads: int
    dtype: str
    kv_format: str

    @property
    def kv_bytes(self) -> int:
        """Bytes of the device's pages and the ring."""
        return self.device_pages * self.page_bytes + self.ring_bytes

    @property
    def device_bytes(self) -> int:
        """Bytes of all that is on the device."""
        return self.weight_bytes + self.workspace_bytes + self.kv_bytes

    @property
    def kv_cache_num_tokens(self) -> int:
        """Tokens whose pages the device holds."""
        return self.device_pages * self.block_tokens

    @property
    def crowd(self) -> int:
        """The most sequences that run at once: each has an open page on the device, and one slot is spare."""
        return min(self.max_num_seqs, (self.device_pages - 1) // self.open_slots)

    def fit(self, tokens: int) -> Fit:
        """Return how many sequences of so many tokens may run at once; the last token produced needs no KV."""
        pages = max(1, -(-(tokens - 1) // self.block_tokens))
        beside = self.open_slots - 1
        lower = self.host_pages + self.disk_pages
        held = max(self.device_pages - 1, lower)
        resident = min(self.crowd, self.device_pages // (pages + beside))
        in_all = max(lower // pages, held // (pages + beside))
        return Fit(tokens, resident, min(self.crowd, in_all))

    @property
    def fits(self) -> tuple[Fit, ...]:
        """Fits of the longest sequences and of shorter ones."""
        lengths = dict.fromkeys(max(2, self.max_model_len // shorter) for shorter in SHORTER)
        return tuple(self.fit(tokens) for tokens in lengths)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        derived = ("kv_bytes", "device_bytes", "kv_cache_num_tokens", "crowd")
        return {
            **asdict(self),
            **{name: getattr(self, name) for name in derived},
            "fits": [asdict(fit) for fit in self.fits],
        }


def plan_startup(
    needs: Needs,
    budget: Budget,
    *,
    max_model_len: int,
    max_num_seqs: int,
    max_tokens_per_forward: int,
    threads: int,
    dtype: str,
    kv_format: str,
) -> StartupPlan:
    """Describe what a budget gives a model that needs `needs`."""
    return StartupPlan(
        weight_bytes=needs.weight_bytes,
        workspace_bytes=needs.workspace_bytes,
        page_bytes=needs.page_bytes,
        block_tokens=needs.block_tokens,
        device_pages=budget.device_slots,
        ring_bytes=budget.ring_slots * needs.part_bytes,
        host_pages=budget.host_slots,
        disk_pages=budget.disk_bytes // needs.page_bytes,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        largest_batch_rows=max_tokens_per_forward,
        open_slots=needs.open_slots,
        threads=threads,
        dtype=dtype,
        kv_format=kv_format,
    )
