"""What a step and the memory can hold, as numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step and the memory can hold.

    `device_slots` bounds the pages that sequences may fill at once, `held_pages` those they may own over all tiers.
    An open page takes `open_slots` device slots. Of `held_pages`, the tiers below the device hold `lower_pages`.
    `lookahead`: admit nobody who is foreseen to crowd the device, and pause somebody where it gets crowded all the
    same. Without it, all that the tiers together hold run at once, and what the device does not hold is streamed.
    """

    max_num_seqs: int
    max_tokens_per_forward: int
    max_model_len: int
    block_tokens: int
    device_slots: int
    held_pages: int
    vocab_size: int
    eos_token_ids: frozenset[int] = frozenset()
    open_slots: int = 1
    lower_pages: int = 0
    lookahead: bool = True

    def __post_init__(self) -> None:
        assert self.device_slots > self.open_slots >= 1, "the slots of an open page and one spare"
        assert min(self.max_num_seqs, self.max_tokens_per_forward, self.block_tokens, self.held_pages) >= 1

    @property
    def crowd(self) -> int:
        """How many may run: each has an open page on the device, and one slot is spare."""
        return min(self.max_num_seqs, (self.device_slots - 1) // self.open_slots)

    @property
    def beside(self) -> int:
        """How many slots an open page takes beside its own."""
        return self.open_slots - 1

    def most_pages(self, sequences: int) -> int:
        """Return how many pages so many sequences may own: all below the device, or beside what open ones take."""
        return max(self.held_pages - sequences * self.beside, self.lower_pages)

    def holding(self, lower_pages: int) -> Self:
        """Return the same limits with tiers below the device that hold so many pages."""
        return replace(self, lower_pages=lower_pages, held_pages=max(self.device_slots - 1, lower_pages))

    def pages(self, tokens: int) -> int:
        """Return how many pages so many tokens take."""
        return -(-tokens // self.block_tokens)
