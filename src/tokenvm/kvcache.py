"""KVCache: sequences and their pages on top of the virtual memory: stage, commit, truncate, fork, release."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from tokenvm.arrange import Layout, lay_out
from tokenvm.clock import Clock
from tokenvm.errors import StorageError
from tokenvm.kernels.paging import copy
from tokenvm.open_pages import OpenPages
from tokenvm.residency.sharing import order_of
from tokenvm.schedule.plan import Plan
from tokenvm.sequences import Sequences
from tokenvm.staging import Staged
from tokenvm.stream import Reads, Stream
from tokenvm.vm import MemoryManager
from tokenvm.vocab import Answer, SeqId, Tier, UnitId


class KVCache(Sequences):
    """The KV of all running sequences of one KV group.

    `fingerprint` names all that shapes KV bytes besides the tokens; see `residency.keys.page_key`. `open_pages` holds
    raw bytes where the KV format is lossy, and is owned from here on. With `prefix_caching` the sealed pages of
    announced sequences outlive them until their slots are needed, and other sequences begin with them. With
    `shared_attention` a page that several sequences of a step share is read once for all of them.
    """

    def __init__(
        self,
        vm: MemoryManager,
        block_tokens: int,
        fingerprint: bytes,
        clock: Clock,
        *,
        prefetch_ahead: int | None = None,
        salt: bytes = b"",
        open_pages: OpenPages | None = None,
        prefix_caching: bool = True,
        shared_attention: bool = True,
    ) -> None:
        super().__init__(vm, block_tokens, fingerprint, salt, open_pages, prefix_caching)
        self._clock = clock
        self._shared_attention = shared_attention
        self._stream = Stream(vm, prefetch_ahead)
        self._layout: Layout | None = None
        self._layout_key: tuple[object, ...] = ()
        self._order: list[int] = []
        self._order_key: tuple[object, ...] = ()
        self._unwritten = False

    def gather(self, plan: Plan) -> Plan:
        """Return the plan with the spans of sequences that share pages side by side, so that `stage` reads those once.

        All its sequences have begun. The same plan where its order serves already.
        """
        key = (self._table.version, *(span.seq for span in plan.spans))
        if key != self._order_key:
            self._order = order_of([self._table.pages(span.seq) for span in plan.spans])
            self._order_key = key
        spans = tuple(plan.spans[at] for at in self._order)
        return plan if spans == plan.spans else replace(plan, spans=spans)

    @contextmanager
    def stage(self, plan: Plan) -> Iterator[Staged]:
        """Make the pages of a plan attendable: pin those on the device, start the reads of the rest.

        Everything is unpinned at exit. After an error no read is left in the ring. When the block has ended, `lost` of
        what it lent names every sequence, staged or not, that owns a page which turned out damaged.

        Raises:
            StorageError: there is no room for the pages that the plan fills.
        """
        self.vm.end_along()
        if self._pauses.resting:
            for span in plan.spans:
                self.resume(span.seq)
        self._extend(plan)
        if plan.decodes and self._layout is not None and self._layout.streams:
            self.vm.promote(self._running(), displace=bool(self._pauses.resting))
        layout = self._lay_out(plan)
        expected = self._expect(plan, layout)
        if plan.spills:
            self.vm.write_along(self._filled_by(plan))
        self.vm.ledger.pin(layout.resident)
        try:
            staged = Staged(self.vm, self._stream, layout, plan, self.block_tokens, self._clock, expected)
            if self._open_pages is not None:
                staged.own = self._open_pages.arrange(
                    plan.spans, [self._table.pages(s.seq) for s in plan.spans]
                )
            for seq, valid in self._pauses.fallen.items():
                staged.lost.setdefault(seq, valid)
            yield staged
            self._spread_losses(staged.lost)
        except BaseException:
            self._forget_layout()
            self.vm.end_along()
            raise
        finally:
            self.vm.ledger.unpin(layout.resident)

    def commit(self, seq: SeqId, count: int, tokens: Sequence[int]) -> None:
        """Advance by `count` tokens that were appended; pages that became full are sealed and get their key.

        `tokens` are all tokens of the sequence.
        """
        for unit in self._table.advance(seq, count):
            self.vm.seal(unit)
            self._close_pages([unit])
            self._unwritten = True
            self._table.add_key(seq, self._prefixes.name(seq, unit, tokens))

    def tend(self) -> None:
        """Let time pass for the tiers below the device; what is too old, or in a tier that cannot be read, is given up.

        Between steps. Sequences that own such a page are reported lost by the next `stage` that they are in.
        """
        for tier in self.vm.watch.tick():
            self._forget_layout()
            self.vm.end_along()
            self.vm.losses.give_up(tier)
        self.vm.keeping.expire()

    def write_behind(self) -> None:
        """Start writing sealed pages down, so that their slots can be reused without waiting."""
        if self._unwritten:
            self.vm.write_behind(self._running())
            self._unwritten = False

    def truncate(self, seq: SeqId, tokens: int) -> int:
        """Take back all but the first `tokens`; return how many stay: fewer where a sealed page would be cut."""
        length = self._table.length_tokens(seq)
        self._pauses.fallen.pop(seq, None)
        if tokens // self.block_tokens < length // self.block_tokens:
            tokens -= tokens % self.block_tokens
        self._forget_layout()
        self._let_go(self._table.truncate(seq, min(tokens, length)))
        return self._table.length_tokens(seq)

    def cut(self, seq: SeqId, tokens: int) -> None:
        """Take back all but the first `tokens`; what stays of a sealed page goes on in an open page of its own.

        For raw KV. Raises StorageError where the device has no room for that page, or its bytes are damaged.
        """
        assert self._open_pages is None, "KVCache.cut: a lossy page cannot be opened again"
        index, rest = divmod(tokens, self.block_tokens)
        if not rest or index == self._table.length_tokens(seq) // self.block_tokens:
            self.truncate(seq, tokens)
            return
        source = self._table.pages(seq)[index]
        self.vm.retain([source])
        try:
            self.truncate(seq, tokens)
            unit = self.vm.new_page(self._running())
            self._table.append(seq, unit)
            self._copy_sealed(source, unit)
            self._table.advance(seq, rest)
        finally:
            self.vm.release([source])

    def fork(self, parent: SeqId, child: SeqId) -> None:
        """Begin `child` with all that `parent` has committed: sealed pages are shared, the open one is copied.

        A paused parent is resumed. The child leaves its pages to others if the parent does.
        """
        self.resume(parent)
        self._prefixes.fork(parent, child)
        shared = self._table.fork(parent, child)
        self.vm.retain(shared)
        rest = self._table.length_tokens(parent) - self._table.length_tokens(child)
        if rest:
            source, unit = self._table.pages(parent)[len(shared)], self.vm.new_page(self._running())
            self._table.append(child, unit)
            if self._open_pages is None:
                self.vm.copy_page(source, unit)
            else:
                self._open_pages.copy(source, unit, self._running())
            self._table.advance(child, rest)

    def release(self, seq: SeqId) -> None:
        """End a sequence; pages that nobody else needs and no prefix keeps are freed."""
        self._forget_layout()
        self._pauses.forget(seq)
        self._prefixes.forget(seq)
        self._let_go(self._table.remove(seq))

    def reserve(self, pages: int) -> None:
        """Make sure that `pages` pages have space over all tiers; StorageError where they cannot have it."""
        if pages > self.vm.ledger.capacity(Tier.DEVICE):
            self.vm.reserve(pages)

    def close(self) -> None:
        """Stop all reads and give the memory back."""
        self._forget_layout()
        self.vm.close()
        if self._open_pages is not None:
            self._open_pages.free()

    def _copy_sealed(self, source: UnitId, target: UnitId) -> None:
        """Copy a page from whatever tier it lies in to a page on the device. Nothing else is in the ring."""
        if self.vm.ledger.resident(source, Tier.DEVICE):
            self.vm.copy_page(source, target)
            return
        ring, stride = self.vm.ring, self.vm.layout.part_stride
        first = ring.submit(self.vm.program([source]))
        base = int(self.vm.addresses([target])[0])
        for layer in range(self.vm.layout.layers):
            if ring.wait(first + layer + 1) is not Answer.HIT:
                ring.cancel()
                raise StorageError(
                    "a page came back damaged: run it again, and check the disk below nvme_path"
                )
            copy(base + layer * stride, int(ring.addresses(first + layer, first + layer + 1)[0]), stride)
            ring.release(first + layer + 1)

    def _extend(self, plan: Plan) -> None:
        """Give every sequence the pages its span goes to; all have room before the first is made."""
        missing = [(span.seq, self._table.missing_pages(span.seq, span.end)) for span in plan.spans]
        wanted = sum(count for _, count in missing)
        if not wanted and self._open_pages is None:
            return
        running = self._running()  # the table's own lists: what is appended to them is seen
        if wanted:
            self.vm.make_room(wanted, running)
            self.vm.write_idle(running)
        for seq, count in missing:
            for _ in range(count):
                self._table.append(seq, self.vm.new_page(running))
        if self._open_pages is not None:
            for span in plan.spans:
                self._open_pages.open(span, self._table.pages(span.seq), running)

    def _filled_by(self, plan: Plan) -> list[UnitId]:
        """Return the pages that are full once the plan is carried out."""
        block = self.block_tokens
        return [
            unit
            for span in plan.spans
            for unit in self._table.pages(span.seq)[span.start // block : span.end // block]
        ]

    def _lay_out(self, plan: Plan) -> Layout:
        """Arrange the pages, or keep the arrangement if neither pages nor places changed since."""
        lengths = [-(-span.end // self.block_tokens) for span in plan.spans]
        shape = tuple((span.seq, span.count, pages) for span, pages in zip(plan.spans, lengths, strict=True))
        key = (self.vm.ledger.version, self._table.version, shape)
        if self._layout is None or key != self._layout_key:
            pages = [self._table.pages(span.seq)[:end] for span, end in zip(plan.spans, lengths, strict=True)]
            shared = self._shared_attention
            self._layout = lay_out(plan.spans, pages, self.vm, self.block_tokens, shared=shared)
            self._layout_key = key
        return self._layout

    def _expect(self, plan: Plan, layout: Layout) -> Reads | None:
        """Return what the next step will most likely stream: in decode the same, and the pages that leave for new ones.

        None where nobody can tell.
        """
        if not plan.decodes or layout.lost:
            return None
        new_pages = sum(span.end % self.block_tokens == 0 for span in plan.spans)
        if not new_pages:
            return layout.reads
        leaving = set(self.vm.room.foresee(new_pages, self._running()))
        streamed = zip(layout.units, layout.streamed.tolist(), strict=True)
        return Reads.of([unit for unit, out in streamed if out or unit in leaving], self.vm)

    def _spread_losses(self, lost: dict[SeqId, int]) -> None:
        """A damaged page is lost to all who share it."""
        if not lost:
            return
        for seq in self._table.sequences():
            for index, unit in enumerate(self._table.pages(seq)):
                if self.vm.ledger.lost(unit):
                    valid = index * self.block_tokens
                    lost[seq] = min(valid, lost.get(seq, valid))

    def _forget_layout(self) -> None:
        self._layout = None
        self._stream.cancel()
