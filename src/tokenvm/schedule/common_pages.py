"""Which leading pages running sequences have in common, so that each counts once.

Pages are named by the tokens up to their end. The first that computes a page owns its name; whoever finds the page
later shares it with the owner. A sequence that computes the same tokens for itself shares nothing.
"""

from __future__ import annotations

from tokenvm.schedule.request import Request
from tokenvm.vocab import SeqId

Path = tuple[int, ...]
"""The names of a prompt's full pages, in order; each stands for all tokens up to the page's end."""


def path_of(request: Request, block_tokens: int) -> Path:
    """Name the pages of a prompt that another one may find: the full ones without the last token."""
    ids, name = request.prompt_token_ids, hash(request.cache_salt)
    names = []
    for begin in range(0, (len(ids) - 1) // block_tokens * block_tokens, block_tokens):
        name = hash((name, ids[begin : begin + block_tokens]))
        names.append(name)
    return tuple(names)


class Sharing:
    """Counts the pages that those on the device have in common. All costs are in pages of one prompt."""

    def __init__(self) -> None:
        self._paths: dict[SeqId, Path] = {}
        self._depths: dict[SeqId, int] = {}
        self._owners: dict[int, SeqId] = {}
        self._holders: dict[int, int] = {}  # page → how many of those on the device share it
        self._on_device: set[SeqId] = set()
        self._shares = 0

    @property
    def duplicates(self) -> int:
        """How many pages would be counted too often if each sequence on the device were counted alone."""
        return self._shares - len(self._holders)

    def depth(self, seq: SeqId) -> int:
        """Return how many leading pages a sequence may share with others."""
        return self._depths.get(seq, 0)

    def found(self, path: Path) -> None:
        """Note that these pages were found: their owners share them."""
        for depth, page in enumerate(path, 1):
            owner = self._owners.get(page)
            if owner is not None and self._depths[owner] < depth:
                self._set_depth(owner, depth)

    def begin(self, seq: SeqId, path: Path, found: int) -> None:
        """Let a sequence begin on the device behind the pages that were found, computing the rest of its path."""
        self.found(path[:found])
        for page in path[found:]:
            self._owners.setdefault(page, seq)
        self._paths[seq], self._depths[seq] = path, 0
        self._on_device.add(seq)
        self._set_depth(seq, found)

    def leave(self, seq: SeqId) -> None:
        """A sequence's pages count no more, until it joins again."""
        if seq in self._on_device:
            self._on_device.remove(seq)
            self._count(self._paths[seq][: self._depths[seq]], -1)

    def join(self, seq: SeqId) -> None:
        """A sequence that left counts again."""
        if seq in self._paths and seq not in self._on_device:
            self._on_device.add(seq)
            self._count(self._paths[seq][: self._depths[seq]], 1)

    def cut(self, seq: SeqId, pages: int) -> None:
        """A sequence lost its pages from there on, and will compute them for itself."""
        if seq in self._paths:
            self._set_depth(seq, min(pages, self._depths[seq]))
            self._disown(seq, pages)
            self._paths[seq] = self._paths[seq][:pages]

    def end(self, seq: SeqId) -> None:
        """Forget a sequence, if it ever began."""
        if seq in self._paths:
            self.leave(seq)
            self._disown(seq, 0)
            del self._paths[seq], self._depths[seq]

    def lacking(self, path: Path) -> int:
        """Return how many of these pages nobody on the device holds."""
        return sum(page not in self._holders for page in path)

    def _set_depth(self, seq: SeqId, depth: int) -> None:
        path, before = self._paths[seq], self._depths[seq]
        self._depths[seq] = depth
        if seq in self._on_device:
            self._count(path[before:depth], 1)
            self._count(path[depth:before], -1)

    def _count(self, pages: Path, change: int) -> None:
        self._shares += change * len(pages)
        for page in pages:
            left = self._holders.get(page, 0) + change
            if left:
                self._holders[page] = left
            else:
                del self._holders[page]

    def _disown(self, seq: SeqId, pages: int) -> None:
        for page in self._paths[seq][pages:]:
            if self._owners.get(page) == seq:
                del self._owners[page]
