"""Prefixes that were computed before: what is announced, what is found, what a sequence begins with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenvm.residency.keys import ROOT, page_key
from tokenvm.residency.page_table import PageTable
from tokenvm.residency.planner import Pages
from tokenvm.residency.prefix_plan import Arrivals, Rates, worthwhile_pages
from tokenvm.schedule.prefixes import Match
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Answer, PageKey, SeqId, Tier, UnitId

_ROUNDS = 3
"""How often a sequence asks for pages to come to the device, and how often it is believed to begin, one step each."""


@dataclass(slots=True)
class Prompt:
    """An announced sequence. `keys` are those of all whole pages of the prompt that do not hold its last token.

    `found` is the last match, `lay` the tier in which each of its pages was first met. `rounds` it may still wait for
    copies, `trust` steps it may still say it is about to begin; `claims`: it says so in this step. `wants` pages on the
    device, and `kept` says that it shares its own.
    """

    salt: bytes
    keys: list[PageKey]
    tokens: int
    kept: bool = True
    found: list[UnitId] = field(default_factory=list)
    lay: dict[UnitId, Tier] = field(default_factory=dict)
    cached_tokens: int = 0
    rounds: int = _ROUNDS
    trust: int = _ROUNDS
    claims: bool = False
    wants: bool = False


@dataclass(slots=True)
class PrefixStats:
    """Counters since birth. `asked_tokens` are those of prompts that began, `hit_tokens` those found, by the tier
    in which they lay when they were first asked for.
    """

    asked_tokens: int = 0
    hit_tokens: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(Tier, 0))

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        hits = {tier.name.lower(): tokens for tier, tokens in self.hit_tokens.items()}
        return {"asked_tokens": self.asked_tokens, "hit_tokens": hits}


class PrefixCache:
    """Finds prefixes for sequences that were announced, and names and keeps the pages they compute.

    `table` and `vm` are the KVCache's. `salt` is part of every key; an open page takes `open_slots` device slots. With
    `on=False` nothing is kept or found.
    """

    def __init__(
        self,
        vm: MemoryManager,
        table: PageTable,
        fingerprint: bytes,
        salt: bytes,
        *,
        open_slots: int,
        on: bool,
    ) -> None:
        self.stats = PrefixStats()
        self._vm = vm
        self._table = table
        self._block_tokens = table.block_tokens
        self._fingerprint = fingerprint
        self._salt = salt
        self._open_slots = open_slots
        self._on = on
        self._prompts: dict[SeqId, Prompt] = {}
        self._asked: list[SeqId] = []  # since the last round

    def announce(self, seq: SeqId, tokens: Sequence[int], salt: str) -> None:
        """Name the pages of a prompt. The sequence, once begun, appends these tokens before all others."""
        block = self._block_tokens
        whole = self._salt + salt.encode()
        keys = [ROOT]
        for page in range((len(tokens) - 1) // block if self._on else 0):
            named = tokens[page * block : (page + 1) * block]
            keys.append(page_key(whole, self._fingerprint, keys[-1], named))
        self._prompts[seq] = Prompt(whole, keys[1:], len(tokens), self._on)

    def forget(self, seq: SeqId) -> None:
        """The sequence ended, or will never begin."""
        self._prompts.pop(seq, None)

    def fork(self, parent: SeqId, child: SeqId) -> None:
        """The child shares its pages if the parent does; nobody knows which tokens it will go on with."""
        if parent in self._prompts:
            of = self._prompts[parent]
            self._prompts[child] = Prompt(of.salt, [], of.tokens, of.kept)

    def match(self, seq: SeqId, resting: Collection[SeqId], rates: Rates) -> Match:
        """See `Prefixes.match`; `resting` are sequences that have begun and are not running."""
        if seq not in self._prompts:
            return Match(Answer.HIT)
        prompt = self._prompts[seq]
        units = self._vm.index.walk(prompt.keys)
        taken = self._worthwhile(units, rates)
        prompt.claims = prompt.wants = False
        self._asked.append(seq)
        if taken == len(units) and self._is_being_computed(seq, prompt, taken, resting):
            return Match(Answer.IN_FLIGHT, tuple(units))
        if units[:taken] != prompt.found:
            prompt.found = units[:taken]
            self._vm.index.touch(prompt.found)
        for unit in prompt.found:
            prompt.lay.setdefault(unit, self._vm.ledger.find(unit).tier)
        if self._waits_for_copies(prompt, resting):
            return Match(Answer.IN_FLIGHT, tuple(prompt.found))
        prompt.claims = prompt.trust > 0
        return Match(Answer.HIT, tuple(prompt.found))

    def begin(self, seq: SeqId) -> None:
        """Let a sequence begin with the pages of its last match."""
        prompt = self._prompts.get(seq)
        if prompt is None:
            self._table.add(seq)
            return
        pages = prompt.found
        assert all(unit in self._vm.index for unit in pages), f"sequence {seq}: its match is out of date"
        self._vm.retain(pages)
        self._table.adopt(seq, pages, prompt.keys[: len(pages)])
        self._vm.index.visit(prompt.keys)
        prompt.cached_tokens = len(pages) * self._block_tokens
        self.stats.asked_tokens += prompt.tokens
        self._vm.policy.touch(*pages)
        for unit in pages:
            self.stats.hit_tokens[prompt.lay[unit]] += self._block_tokens

    def cached_tokens(self, seq: SeqId) -> int:
        """Return how many tokens a sequence that has begun was given."""
        return self._prompts[seq].cached_tokens if seq in self._prompts else 0

    def name(self, seq: SeqId, unit: UnitId, tokens: Sequence[int]) -> PageKey:
        """Return the key of the page that was sealed last, and keep the page if the sequence shares its pages."""
        parent, index = self._table.last_key(seq), len(self._table.keys(seq))
        prompt = self._prompts.get(seq)
        if prompt is not None and index < len(prompt.keys):
            key = prompt.keys[index]
        else:
            salt = self._salt if prompt is None else prompt.salt
            block = self._block_tokens
            key = page_key(salt, self._fingerprint, parent, tokens[index * block : (index + 1) * block])
            if prompt is not None and prompt.kept:
                self._vm.index.extend(key, parent)
        if prompt is not None and prompt.kept:
            self._vm.keep(unit, key, parent)
        return key

    def end_round(self, begun: Collection[SeqId], running: Sequence[Pages]) -> None:
        """Who was asked about since the last round has begun, or will be asked about again; copies are started."""
        asked, self._asked = self._asked, []
        for seq in asked:
            prompt = self._prompts.get(seq)
            if prompt is None:
                continue
            if prompt.claims:
                prompt.claims = False
                prompt.trust -= seq not in begun
            if prompt.wants:
                prompt.wants = False
                coming = self._vm.bring(prompt.found, running, self._keep_free(len(running)))
                prompt.rounds = prompt.rounds - 1 if coming is Answer.IN_FLIGHT else 0

    def _worthwhile(self, units: Sequence[UnitId], rates: Rates) -> int:
        if not rates.prefill_tokens_per_s:
            return len(units)
        tiers = [self._vm.ledger.find(unit).tier for unit in units]
        return worthwhile_pages(tiers, self._vm.layout.page_bytes, self._block_tokens, rates)

    def _is_being_computed(self, seq: SeqId, prompt: Prompt, pages: int, resting: Collection[SeqId]) -> bool:
        """Whether a sequence that runs, or that was told to begin in this very step, will commit the next page.

        Nobody waits for a sequence that itself waits, so the wait ends.
        """
        if pages == len(prompt.keys):
            return False
        running = [other for other in self._table.sequences() if other not in resting]
        behind = [other for other in running if len(self._table.keys(other)) <= pages]
        claimed = [other for other in self._asked if other in self._prompts and self._prompts[other].claims]
        begin_now = [other for other in claimed if other not in self._table and other != seq]
        wanted = prompt.keys[pages : pages + 1]
        return any(
            wanted == self._prompts[other].keys[pages : pages + 1]
            for other in (*behind, *begin_now)
            if other in self._prompts
        )

    def _waits_for_copies(self, prompt: Prompt, resting: Collection[SeqId]) -> bool:
        """Whether pages of the prefix come to the device, or should."""
        ledger = self._vm.ledger
        if any(ledger.arriving(unit, Tier.DEVICE) for unit in prompt.found):
            self._vm.settle()
        if any(ledger.arriving(unit, Tier.DEVICE) for unit in prompt.found):
            return True
        if prompt.rounds <= 0:
            return False
        running = [self._table.pages(seq) for seq in self._table.sequences() if seq not in resting]
        arrivals = Arrivals.choose(
            prompt.found, self._keep_free(len(running)), ledger, self._vm.policy, running
        )
        prompt.wants = bool(arrivals.units)
        return prompt.wants

    def _keep_free(self, running: int) -> int:
        """Slots that are left to the open pages of all who run and of the one that waits."""
        return self._open_slots * (running + 1)
