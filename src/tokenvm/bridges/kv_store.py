"""The pages of a Transformers model: rows of batches as sequences, their forward passes as steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenvm.bridges.kv_step import KvStep
from tokenvm.clock import RealClock
from tokenvm.engine.account import Account
from tokenvm.engine.budget import MAX_RING_BYTES, MIN_RING_PARTS
from tokenvm.errors import LimitTooSmall, RequestError
from tokenvm.kernels.paging import PartGeometry
from tokenvm.kvcache import KVCache
from tokenvm.schedule.plan import Plan, Span
from tokenvm.vm import MemoryManager
from tokenvm.vocab import SeqId, Tier


@dataclass
class Rows:
    """A batch: its sequences in order, and which columns it has seen. `kept` bool [B, L]: those that are tokens."""

    seqs: list[SeqId] = field(default_factory=list)
    kept: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), np.bool_))

    @property
    def columns(self) -> int:
        """How many columns were committed, padding included."""
        return int(self.kept.shape[1])


class KvStore:
    """Paged KV of the layers of one model, for any number of batches; one step at a time. Owns `vm`."""

    def __init__(
        self, vm: MemoryManager, geometry: PartGeometry, *, prefetch_ahead: int | None = None
    ) -> None:
        self.vm = vm
        self.geometry = geometry
        self._clock = RealClock()
        self.kv = KVCache(
            vm,
            geometry.block_tokens,
            b"",
            self._clock,
            prefetch_ahead=prefetch_ahead,
            prefix_caching=False,
        )
        self.account = Account(vm, self._clock)
        self._names = 0
        self._closed = False
        self._step: tuple[KvStep, Rows, npt.NDArray[np.bool_], float] | None = None

    @property
    def layers(self) -> int:
        """How many layers its pages have."""
        return self.vm.layout.layers

    def chunk_tokens(self, rows: int) -> int:
        """Return how many columns a pass over `rows` rows may have at most, whatever came before; at least 1."""
        pages = self.vm.ledger.capacity(Tier.DEVICE) // rows
        return max(1, (pages - 1) * self.geometry.block_tokens)

    def bytes_for(self, rows: int, columns: int) -> int:
        """Return the `kv_limit` under which `chunk_tokens(rows)` is at least `columns`."""
        return self._limit_of(rows * (-(-columns // self.geometry.block_tokens) + 1))

    def sealed_tokens(self, rows: int) -> int:
        """Return how many columns a pass over `rows` rows may have if all begin and end with whole pages."""
        return max(1, self.vm.ledger.capacity(Tier.DEVICE) // rows) * self.geometry.block_tokens

    def begin(self, rows: Rows, kept: npt.NDArray[np.bool_]) -> KvStep:
        """Begin a pass of new columns, `kept` bool [B, T]. An unfinished pass is given up.

        Raises LimitTooSmall where the device cannot hold the pages that it fills, RequestError after `close`.
        """
        self.refuse_closed()
        self.abandon()
        if not rows.seqs:
            rows.seqs, rows.kept = [self._create() for _ in kept], np.zeros((len(kept), 0), np.bool_)
        plan = self._plan(rows, kept)
        began_s = self._clock.now_s()
        step = KvStep(self.kv, plan, self.geometry, rows.seqs, kept)
        self._step = (step, rows, kept, began_s)
        return step

    def finish(self) -> None:
        """Every layer of the pass has been appended to: it counts now. Raises as `KvStep.close`."""
        assert self._step is not None, "KvStore.finish before begin"
        (step, rows, kept, began_s), self._step = self._step, None
        step.close()
        rows.kept = np.concatenate([rows.kept, kept], axis=1)
        self.account.step(step.plan, step.staged, began_s, self._clock.now_s())

    def abandon(self) -> None:
        """Give up the pass that is under way, if one is."""
        if self._step is not None:
            step, self._step = self._step[0], None
            step.abandon()

    def pick(self, rows: Rows, picked: Sequence[int]) -> None:
        """Make row i of the batch what row `picked[i]` was: pages are shared, only open ones are copied."""
        self.refuse_closed()
        uses = Counter(picked)
        for row, seq in enumerate(rows.seqs):
            if row not in uses:
                self.kv.release(seq)
        seqs = []
        for row in picked:
            uses[row] -= 1
            seqs.append(self._forked(rows.seqs[row]) if uses[row] else rows.seqs[row])
        rows.seqs, rows.kept = seqs, rows.kept[list(picked)]

    def cut(self, rows: Rows, columns: int) -> None:
        """Take back all but the first `columns` columns."""
        self.refuse_closed()
        rows.kept = rows.kept[:, :columns]
        for seq, tokens in zip(rows.seqs, rows.kept.sum(axis=1).tolist(), strict=True):
            self.kv.cut(seq, tokens)

    def release(self, rows: Rows) -> None:
        """Forget a batch; its pages are free. Idempotent."""
        if self._step is not None and self._step[1] is rows:
            self.abandon()
        seqs, rows.seqs = rows.seqs, []
        rows.kept = rows.kept[:, :0]
        for seq in () if self._closed else seqs:
            self.kv.release(seq)

    def stats(self) -> dict[str, Any]:
        """Return tiers, moves, streamed pages and steps as plain values; see `engine.account`."""
        return self.account.as_dict()

    def close(self) -> None:
        """Stop all copies and give the memory back; idempotent."""
        if self._closed:
            return
        self.abandon()
        self._closed = True
        self.kv.close()

    def refuse_closed(self) -> None:
        """Raise RequestError after `close`: the pages are gone."""
        if self._closed:
            raise RequestError(
                "the pages of this cache are gone, since its model's paging was ended or its limit changed: "
                "leave past_key_values out, so that a new cache is begun"
            )

    def _create(self) -> SeqId:
        self._names += 1
        seq = SeqId(self._names)
        self.kv.create(seq)
        return seq

    def _forked(self, parent: SeqId) -> SeqId:
        self._names += 1
        child = SeqId(self._names)
        self.kv.fork(parent, child)
        return child

    def _plan(self, rows: Rows, kept: npt.NDArray[np.bool_]) -> Plan:
        """One span a row, also where it gets no new token."""
        counts = kept.sum(axis=1).tolist()
        starts = [self.kv.length_tokens(seq) for seq in rows.seqs]
        spans = tuple(
            Span(seq, start, count, samples=True)
            for seq, start, count in zip(rows.seqs, starts, counts, strict=True)
        )
        capacity = self.vm.ledger.capacity(Tier.DEVICE)
        self._refuse_wide(spans, capacity)
        pages = sum(
            -(-(start + count) // self.geometry.block_tokens) + 1
            for start, count in zip(starts, counts, strict=True)
        )
        lower = self.vm.ledger.capacity(Tier.HOST) + self.vm.ledger.capacity(Tier.DISK)
        return Plan(spans, spills=lower > 0 and 4 * pages > 3 * capacity)

    def _refuse_wide(self, spans: Sequence[Span], capacity: int) -> None:
        block = self.geometry.block_tokens
        held = sum(-(-span.end // block) - span.start // block for span in spans)
        if held > capacity:
            least = self._limit_of(held)
            raise LimitTooSmall(
                f"a forward pass of {len(spans)} x {max(span.count for span in spans)} tokens fills {held} pages, and "
                f'{capacity} fit the device: type kv_limit="{-(-least // 10**6)}MB" or more',
                least,
            )

    def _limit_of(self, pages: int) -> int:
        """Return a `kv_limit` that has room for so many pages beside the largest ring that it may be given."""
        taken = pages * self.vm.layout.page_bytes
        return taken + max(min(MAX_RING_BYTES, taken), MIN_RING_PARTS * self.vm.ring.stride)
