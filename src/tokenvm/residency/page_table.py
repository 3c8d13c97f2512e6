"""Sequences and their pages, for one KV group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenvm.residency.keys import ROOT
from tokenvm.vocab import PageKey, SeqId, UnitId


@dataclass(slots=True)
class Entry:
    """One sequence: its pages in position order, the keys of the sealed ones, its committed length."""

    pages: list[UnitId] = field(default_factory=list)
    keys: list[PageKey] = field(default_factory=list)
    length_tokens: int = 0


class PageTable:
    """Sequence → pages. Says who has what; ownership counts live in the ledger."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.version = 0
        self._entries: dict[SeqId, Entry] = {}

    def __contains__(self, seq: SeqId) -> bool:
        return seq in self._entries

    def sequences(self) -> list[SeqId]:
        """Every sequence, in the order they came."""
        return list(self._entries)

    def add(self, seq: SeqId) -> None:
        """Begin a sequence without pages."""
        assert seq not in self._entries, f"sequence {seq} is already there"
        self._entries[seq] = Entry()

    def adopt(self, seq: SeqId, pages: Sequence[UnitId], keys: Sequence[PageKey]) -> None:
        """Begin a sequence with sealed pages, and their keys, that others computed."""
        self.add(seq)
        self._entries[seq] = Entry(list(pages), list(keys), len(pages) * self.block_tokens)
        self.version += 1

    def replace(self, seq: SeqId, index: int, unit: UnitId) -> UnitId:
        """Put another page in the place of one; return that one."""
        pages = self._entries[seq].pages
        old, pages[index] = pages[index], unit
        self.version += 1
        return old

    def open_page(self, seq: SeqId) -> list[UnitId]:
        """Return the page that holds the last committed tokens, if it is not full; else none."""
        entry = self._entries[seq]
        full = entry.length_tokens // self.block_tokens
        return entry.pages[full : full + 1] if entry.length_tokens % self.block_tokens else []

    def pages(self, seq: SeqId) -> list[UnitId]:
        """Return the sequence's pages in position order; the table keeps owning the list."""
        return self._entries[seq].pages

    def length_tokens(self, seq: SeqId) -> int:
        """Return how many tokens are committed."""
        return self._entries[seq].length_tokens

    def missing_pages(self, seq: SeqId, tokens: int) -> int:
        """Return how many more pages the sequence needs to hold `tokens` tokens."""
        return max(0, -(-tokens // self.block_tokens) - len(self._entries[seq].pages))

    def append(self, seq: SeqId, unit: UnitId) -> None:
        """Give the sequence one more page."""
        self._entries[seq].pages.append(unit)
        self.version += 1

    def advance(self, seq: SeqId, tokens: int) -> list[UnitId]:
        """Commit `tokens` more; return the pages that became full, in position order."""
        entry = self._entries[seq]
        before = entry.length_tokens // self.block_tokens
        entry.length_tokens += tokens
        assert entry.length_tokens <= len(entry.pages) * self.block_tokens, f"sequence {seq}: no page for it"
        return entry.pages[before : entry.length_tokens // self.block_tokens]

    def add_key(self, seq: SeqId, key: PageKey) -> None:
        """Name the first sealed page that has no key yet."""
        self._entries[seq].keys.append(key)

    def last_key(self, seq: SeqId) -> PageKey:
        """Return the key of the last named page, or that of the empty prefix."""
        keys = self._entries[seq].keys
        return keys[-1] if keys else ROOT

    def keys(self, seq: SeqId) -> list[PageKey]:
        """Return the keys of the sealed pages, in position order."""
        return self._entries[seq].keys

    def truncate(self, seq: SeqId, tokens: int) -> list[UnitId]:
        """Take back all but the first `tokens`: a whole number of pages, or an end inside the open page.

        Returns the pages let go.
        """
        entry = self._entries[seq]
        assert 0 <= tokens <= entry.length_tokens, f"sequence {seq}: it has no {tokens} tokens"
        same_page = tokens // self.block_tokens == entry.length_tokens // self.block_tokens
        assert tokens % self.block_tokens == 0 or same_page, "a sealed page is never opened again"
        kept = -(-tokens // self.block_tokens)
        gone, entry.pages = entry.pages[kept:], entry.pages[:kept]
        del entry.keys[tokens // self.block_tokens :]
        entry.length_tokens = tokens
        self.version += 1
        return gone

    def fork(self, parent: SeqId, child: SeqId) -> list[UnitId]:
        """Let a new sequence share the parent's sealed pages; return them. The open page is the caller's to copy."""
        self.add(child)
        source, target = self._entries[parent], self._entries[child]
        sealed = source.length_tokens // self.block_tokens
        target.pages = source.pages[:sealed]
        target.keys = list(source.keys)
        target.length_tokens = sealed * self.block_tokens
        self.version += 1
        return list(target.pages)

    def remove(self, seq: SeqId) -> list[UnitId]:
        """End a sequence; return its pages."""
        self.version += 1
        return self._entries.pop(seq).pages

    def check(self) -> None:
        """Assert that lengths and pages agree."""
        for seq, entry in self._entries.items():
            assert entry.length_tokens <= len(entry.pages) * self.block_tokens, f"sequence {seq} is too long"
            assert len(entry.keys) <= entry.length_tokens // self.block_tokens, (
                f"sequence {seq}: open page has a key"
            )
            assert len(set(entry.pages)) == len(entry.pages), f"sequence {seq} has a page twice"
