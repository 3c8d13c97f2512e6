"""A few sequences on small tiers, driven as an engine would drive them; every byte that is read is compared."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

from tokenvm.clock import FakeClock
from tokenvm.kvcache import KVCache
from tokenvm.memory.device import DeviceArena
from tokenvm.memory.disk import DiskStore
from tokenvm.memory.host import HostPool
from tokenvm.memory.layout import PageLayout
from tokenvm.memory.sim import SimDevice
from tokenvm.memory.tier import NullStore
from tokenvm.residency.policy.registry import make_policy
from tokenvm.schedule.plan import Plan, Span
from tokenvm.staging import Staged
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Answer, SeqId, Tier, UnitId

BLOCK, LAYERS, RING = 4, 3, 6
LAYOUT = PageLayout(LAYERS, 4096)


class Desk:
    """The part of a page and layer holds `token + layer` of each token. Nothing is left in any tier at the end."""

    def __init__(
        self,
        folder: Path,
        device: int,
        host: int = 0,
        disk: int = 0,
        *,
        caching: bool = True,
        policy: str = "lru",
    ) -> None:
        self.device = SimDevice(3)
        arena = DeviceArena(self.device, device, LAYOUT, poison=True)
        pool = HostPool(self.device, host, LAYOUT) if host else NullStore(Tier.HOST, LAYOUT)
        slabs = DiskStore(folder, disk * LAYOUT.page_bytes, LAYOUT) if disk else NullStore(Tier.DISK, LAYOUT)
        self.vm = MemoryManager(self.device, arena, (pool, slabs), RING, make_policy(policy))
        self.kv = KVCache(self.vm, BLOCK, b"model", FakeClock(), prefix_caching=caching)
        self.prompts: dict[SeqId, list[int]] = {}
        self.tokens: dict[SeqId, list[int]] = {}
        self.computed_tokens = 0
        self.spills = False

    def announce(self, name: int, tokens: Sequence[int], salt: str = "") -> SeqId:
        seq = SeqId(name)
        self.prompts[seq] = list(tokens)
        self.kv.announce(seq, self.prompts[seq], salt)
        return seq

    def try_to_begin(self, *sequences: SeqId) -> list[SeqId]:
        """One round of a scheduler in which only these are asked about, and all who may begin do; return those."""
        begins = []
        for seq in sequences:
            match = self.kv.match(seq)
            if match.answer is Answer.HIT:
                self.tokens[seq] = self.prompts[seq][: len(match.units) * BLOCK]
                begins.append(seq)
        self.follow(begins=tuple(begins))
        return begins

    def follow(self, **named: tuple[SeqId, ...]) -> None:
        self.kv.follow(Plan((), **named))
        self.kv.check()

    def begin(self, seq: SeqId) -> int:
        """Wait until it may begin; return how many rounds that took."""
        rounds = 1
        while not self.try_to_begin(seq):
            rounds += 1
            assert rounds < 10
        return rounds

    def run(self, *sequences: SeqId, count: int = BLOCK) -> dict[SeqId, int]:
        """Append up to `count` tokens of their prompts to these, read all back, commit; return who lost what."""
        spans, fresh = [], {}
        for seq in sequences:
            done = len(self.tokens[seq])
            fresh[seq] = self.prompts[seq][done : done + count]
            spans.append(Span(seq, done, len(fresh[seq]), True))
        plan = Plan(tuple(spans), spills=self.spills)
        wanted = {seq: self.tokens[seq] + fresh[seq] for seq in sequences}
        with self.kv.stage(plan) as staged:
            for layer in range(LAYERS):
                rows = [token for span in spans for token in fresh[span.seq]]
                for address, offset, token in zip(staged.targets(layer), staged.offsets, rows, strict=True):
                    ctypes.memset(int(address) + int(offset), token + layer, 1)
                self._read(staged, layer, spans, wanted)
        for span in spans:
            if span.seq not in staged.lost:
                self.tokens[span.seq] = wanted[span.seq]
                self.kv.commit(span.seq, span.count, wanted[span.seq])
                self.computed_tokens += span.count
        for seq, valid in staged.lost.items():
            del self.tokens[seq][self.kv.truncate(seq, valid) :]
        self.kv.check()
        return staged.lost

    def _read(
        self, staged: Staged, layer: int, spans: Sequence[Span], wanted: dict[SeqId, list[int]]
    ) -> None:
        """Every page of every span is shown once, in order, and holds what it should unless it was lost."""
        seen = dict.fromkeys(wanted, 0)
        for chunk, parts in staged.rounds(layer):
            for segment, first in zip(chunk.segments.tolist(), chunk.first_page.tolist(), strict=True):
                pages = parts[segment[2] : segment[2] + segment[3]].tolist()
                for seq in self._owners(spans, *segment[:2]):
                    assert seen[seq] == first or seq in staged.lost
                    seen[seq] = first + len(pages)
                    for at, page in enumerate(pages, first):
                        expected = bytes(
                            token + layer for token in wanted[seq][at * BLOCK : (at + 1) * BLOCK]
                        )
                        if seq not in staged.lost:
                            assert ctypes.string_at(page, len(expected)) == expected
        assert seen == {span.seq: -(-span.end // BLOCK) for span in spans}

    def run_and_die(self, seq: SeqId) -> None:
        """Begin a step that fills two pages, and let it die after its first layer."""
        with self.kv.stage(Plan((Span(seq, len(self.tokens[seq]), 2 * BLOCK, True),), spills=True)) as staged:
            next(staged.rounds(0))
            raise KeyError

    def _owners(self, spans: Sequence[Span], begin: int, end: int) -> list[SeqId]:
        """Whose rows [begin, end) of the step are."""
        firsts = [0, *accumulate(span.count for span in spans)]
        return [span.seq for span, first in zip(spans, firsts, strict=False) if begin <= first < end]

    def finish(self, seq: SeqId) -> SeqId:
        """Run a sequence to the end of its prompt, chunk by chunk, and release it."""
        self.run_out(seq)
        self.release(seq)
        return seq

    def run_out(self, seq: SeqId) -> None:
        while len(self.tokens[seq]) < len(self.prompts[seq]):
            self.run(seq)

    def whole_life(self, name: int, tokens: Sequence[int], salt: str = "") -> int:
        """Let a sequence be announced, begin, run and end; return how many tokens it was given."""
        seq = self.announce(name, tokens, salt)
        self.begin(seq)
        cached = self.kv.cached_tokens(seq)
        self.finish(seq)
        return cached

    def release(self, seq: SeqId) -> None:
        self.kv.release(seq)
        del self.tokens[seq]
        self.kv.check()

    def kept(self, tier: Tier) -> list[UnitId]:
        """The indexed pages that have a whole copy in a tier, oldest first."""
        return [unit for unit in self.vm.index if self.vm.ledger.resident(unit, tier)]


@contextmanager
def desk(folder: Path, device: int, host: int = 0, disk: int = 0, **named: object) -> Iterator[Desk]:
    made = Desk(folder, device, host, disk, **named)  # type: ignore[arg-type]
    yield made
    for seq in list(made.tokens):
        made.release(seq)
    made.kv.forget_prefixes()
    made.vm.finish_transfers()
    made.kv.check()
    assert [made.vm.ledger.used(tier) for tier in Tier] == [0, 0, 0]
    made.kv.close()


def text(start: int, pages: float) -> list[int]:
    """So many pages of tokens, and the rest of one."""
    return [start + at % 40 for at in range(int(pages * BLOCK))]
