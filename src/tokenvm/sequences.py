"""Sequences and their pages between steps: announced, begun, paused, resumed, and what they leave to others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tokenvm.open_pages import OpenPages
from tokenvm.pauses import Pauses
from tokenvm.prefix_cache import PrefixCache, PrefixStats
from tokenvm.residency.page_table import PageTable
from tokenvm.residency.planner import Pages
from tokenvm.residency.prefix_plan import Rates
from tokenvm.schedule.plan import Plan
from tokenvm.schedule.prefixes import Match
from tokenvm.vm import MemoryManager
from tokenvm.vocab import PageKey, SeqId, UnitId


class Sequences:
    """The half of a `KVCache` that steps know nothing of. Implements `schedule.prefixes.Prefixes`.

    `rates` may be set as they are measured, 0 while not known: pages on disk that could be computed sooner than read
    are not found then.
    """

    def __init__(
        self,
        vm: MemoryManager,
        block_tokens: int,
        fingerprint: bytes,
        salt: bytes,
        open_pages: OpenPages | None,
        prefix_caching: bool,
    ) -> None:
        self.vm = vm
        self.block_tokens = block_tokens
        self.rates = Rates(0.0, 0.0)
        self._table = PageTable(block_tokens)
        self._open_pages = open_pages
        open_slots = 1 if open_pages is None else 1 + open_pages.slots
        self._prefixes = PrefixCache(
            vm, self._table, fingerprint, salt, open_slots=open_slots, on=prefix_caching
        )
        self._pauses = Pauses(vm, self._table, open_pages)

    def announce(self, seq: SeqId, tokens: Sequence[int], salt: str = "") -> None:
        """Hear of a sequence that will begin with these tokens; no others. Pages are shared within one salt only."""
        self._prefixes.announce(seq, tokens, salt)

    def match(self, seq: SeqId) -> Match:
        """See `Prefixes.match`. What is found stays until `follow` is given the plan it was asked for."""
        return self._prefixes.match(seq, self._pauses.resting, self.rates)

    def forget(self, seq: SeqId) -> None:
        """A sequence that was announced will never begin."""
        self._prefixes.forget(seq)

    def follow(self, plan: Plan) -> None:
        """Do what a plan says before its spans; start copies for who waits. Without spans, wait for one of them.

        Raises:
            StorageError: there is no room on the device for a sequence that is resumed. It is tried again when staged.
        """
        for seq in plan.begins:
            if seq not in self._table:
                self._prefixes.begin(seq)
        for seq in plan.pauses:
            self.pause(seq)
        for seq in plan.resumes:
            self.resume(seq)
        self._prefixes.end_round(plan.begins, self._running())
        if not plan.spans:
            self.vm.finish_first()

    def create(self, seq: SeqId) -> None:
        """Begin a sequence from its first token, with pages that it shares with nobody, even if it was announced.

        So pages that are given bytes instead of being computed are never found by others.
        """
        self._prefixes.forget(seq)
        self._table.add(seq)

    def pause(self, seq: SeqId) -> None:
        """Let a sequence rest: all its pages may leave the device, none is lost. Idempotent.

        One that has not begun has none, and is left alone.
        """
        if seq in self._table and seq not in self._pauses.resting:
            self.vm.end_along()
            self._let_go(self._table.truncate(seq, self._table.length_tokens(seq)))
            self._pauses.pause(seq)

    def resume(self, seq: SeqId) -> None:
        """Let a sequence go on: its open page is on the device again, the others come back or are streamed. Idempotent.

        If the open page is damaged, the next `stage` reports the sequence lost. Raises as `follow`.
        """
        if seq in self._pauses.resting:
            self._pauses.resume(seq, self._running())

    def cached_tokens(self, seq: SeqId) -> int:
        """Return how many tokens of a sequence were computed by others."""
        return self._prefixes.cached_tokens(seq)

    @property
    def prefix_stats(self) -> PrefixStats:
        """What was found, in tokens. `vm.room.reclaimed_pages` were let go of."""
        return self._prefixes.stats

    @property
    def kept(self) -> dict[str, Any]:
        """What outlives the process, and what a process before this one left, as plain values."""
        counts = self.vm.keeping.register.as_dict()
        if "warm_pages" in counts:
            counts["warm_tokens"] = counts["warm_pages"] * self.block_tokens
        return counts

    @property
    def policy_stats(self) -> dict[str, Any]:
        """What the policy of kept pages found, beside LRU and a cache without limit, as plain values."""
        name, ruling = self.vm.index.policy_names
        rates = self.vm.index.proof.rates
        return {
            "name": name,
            "ruling": ruling,
            "asked_pages": rates.asked_pages,
            "hit_rate": rates.hit_rate,
            "shadow_lru_hit_rate": rates.lru,
            "infinite_hit_rate": rates.bound,
            "gain_over_lru": rates.hit_rate - rates.lru,
            "regret": rates.regret,
        }

    def forget_prefixes(self) -> None:
        """Let go of every page that no sequence owns; none that is owned now will outlive its sequences."""
        self.vm.forget_prefixes()

    def __contains__(self, seq: SeqId) -> bool:
        return seq in self._table

    def length_tokens(self, seq: SeqId) -> int:
        """Return how many tokens of the sequence are committed."""
        return self._table.length_tokens(seq)

    def keys(self, seq: SeqId) -> list[PageKey]:
        """Return the content addresses of the sequence's sealed pages."""
        return self._table.keys(seq)

    def check(self) -> None:
        """Assert every law of ledger, page table and prefixes, and that nobody owns a page unknown to them."""
        self.vm.ledger.check()
        self.vm.index.check()
        self._table.check()
        owned = Counter(unit for seq in self._table.sequences() for unit in self._table.pages(seq))
        owned.update(self.vm.index)
        if self._open_pages is not None:
            owned.update(self._open_pages.raw(owned))
        ledger = self.vm.ledger
        assert {unit: ledger.owners(unit) for unit in ledger.units() if ledger.owners(unit)} == owned
        for unit in self.vm.index:
            assert self.vm.index.is_idle(unit) == (owned[unit] == 1), f"unit {unit}: idle or not?"
            assert ledger.sealed(unit), f"unit {unit} is indexed, but open"
            assert not ledger.lost(unit), f"unit {unit} is indexed, but lost"

    def _running(self) -> list[Pages]:
        resting = self._pauses.resting
        return [self._table.pages(seq) for seq in self._table.sequences() if seq not in resting]

    def _close_pages(self, units: Sequence[UnitId]) -> None:
        if self._open_pages is not None:
            self._open_pages.close(units)

    def _let_go(self, units: Sequence[UnitId]) -> None:
        self._close_pages(units)
        self.vm.release(units)
