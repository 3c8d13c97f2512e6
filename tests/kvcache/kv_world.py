"""A KVCache on tiers of a few pages beside a plain model of it, and everything that may be done to it."""

import ctypes
import random
from collections import Counter

import numpy as np
import pytest
from kv_tiers import BLOCK, LAYERS, TOKEN_BYTES, content, small_kvcache

from tokenvm.errors import StorageError
from tokenvm.memory.sim import SimDevice
from tokenvm.schedule.plan import Plan, Span
from tokenvm.vocab import Answer, SeqId, Tier


class World:
    """A KVCache beside a plain model of it: what bytes each token of each sequence must have."""

    def __init__(self, seed, folder, disk_pages, codec=None, keeps=False):
        self.rng = random.Random(seed)
        self.device = SimDevice(seed)
        self.kv, self.disk = small_kvcache(self.rng, self.device, folder, disk_pages, codec, keeps)
        self.tokens: dict[SeqId, list[int]] = {}  # committed tokens of those who have begun
        self.prompts: dict[SeqId, list[int]] = {}  # what they begin with, and those who wait
        self.paused: set[SeqId] = set()
        self.next_seq = 0
        self.pressed = False  # there was no room: somebody has to end
        self.counts = Counter()

    @property
    def crowded(self):
        return len(self.tokens) - len(self.paused) >= self.kv.vm.ledger.capacity(Tier.DEVICE) - 1

    @property
    def waiting(self):
        return [seq for seq in self.prompts if seq not in self.tokens]

    def step(self):
        actions = [self.create, self.run, self.run, self.run, self.run_many, self.run_many, self.fork]
        actions += [self.truncate, self.release, self.demote, self.settle, self.fail, self.abandon]
        actions += [self.announce, self.announce, self.turn, self.turn, self.turn, self.pause, self.forget]
        self.rng.choice(actions if not self.pressed else [self.end])()
        self.kv.check()
        for seq, tokens in self.tokens.items():
            assert self.kv.length_tokens(seq) == len(tokens)

    def create(self):
        if not self.crowded:
            self.kv.create(self._new([]))

    def run(self):
        self._run(self._choose(1), longest=2 * BLOCK)

    def run_many(self):
        self._run(self._choose(len(self.tokens)), longest=1)

    def announce(self):
        """Prompts are branches of a few long texts, so that many begin alike."""
        if len(self.waiting) < 4:
            seq = self._name()
            stem, length = self.rng.randint(1, 3), self.rng.randint(1, 6 * BLOCK)
            tail = self.rng.choice([0, 0, 0, 7, 9])
            branch = self.rng.randint(0, 4) * BLOCK
            self.prompts[seq] = [1000 * stem + at + 500 * tail * (at >= branch) for at in range(length)]
            self.kv.announce(seq, self.prompts[seq], salt=self.rng.choice(["", "", "", "other"]))
            self.counts["announced"] += 1

    def forget(self):
        for seq in self.waiting[:1]:
            if self.rng.random() < 0.3:
                self.kv.forget(seq)
                del self.prompts[seq]

    def turn(self):
        """One step as an engine makes it: some begin, some are paused or go on, some run."""
        begins = [seq for seq in self.waiting if self._may_begin(seq)]
        pauses = [seq for seq in self._choose(1) if self.rng.random() < 0.3]
        resumes = [seq for seq in sorted(self.paused) if self.rng.random() < 0.5 and not self.crowded]
        for seq in pauses:
            self._rest(seq)
        self._follow(Plan((), begins=tuple(begins), pauses=tuple(pauses), resumes=tuple(resumes)))
        self.kv.check()
        late = [seq for seq in sorted(self.paused)[:1] if self.rng.random() < 0.2 and not self.crowded]
        self.paused -= set(late)  # staging resumes whom the plan forgot
        self._run(sorted({*late, *self._choose(2)}), longest=self.rng.choice([1, 2 * BLOCK]))
        self.paused |= {seq for seq in late if seq in self.kv._pauses.resting}

    def pause(self):
        for seq in self._choose(1):
            self._rest(seq)
            self.kv.pause(seq)

    def _may_begin(self, seq):
        match = self.kv.match(seq)
        assert all(unit in self.kv.vm.index for unit in match.units)
        assert len(match.units) * BLOCK < len(self.prompts[seq]), "the last token is always computed"
        if match.answer is not Answer.HIT:
            self.counts["waited"] += 1
            return False
        if self.crowded or self.rng.random() < 0.2:
            return False
        self.tokens[seq] = self.prompts[seq][: len(match.units) * BLOCK]
        self.counts["begun with a prefix" if match.units else "begun"] += 1
        return True

    def _rest(self, seq):
        self.paused.add(seq)
        self.counts["paused"] += 1

    def _follow(self, plan):
        try:
            self.kv.follow(plan)
        except StorageError as error:
            self._refused(error)
        awake = {seq for seq in plan.resumes if seq not in self.kv._pauses.resting}
        self.paused -= awake
        self.counts["resumed"] += len(awake)
        self.counts["fallen"] += len(self.kv._pauses.fallen)

    def _refused(self, error):
        """Never for the sake of pages that nobody runs."""
        self.counts["refused"] += 1
        self.pressed = self.rng.random() < 0.5
        if "in use" not in str(error) and "full" not in str(error):
            return
        ledger, index = self.kv.vm.ledger, self.kv.vm.index
        idle = [unit for unit in index if index.is_idle(unit)]
        assert not any(ledger.resident(unit, Tier.DEVICE) for unit in idle)
        might = [
            unit for unit in ledger.units() if ledger.sealed(unit) and ledger.resident(unit, Tier.DEVICE)
        ]
        assert not (might and idle), "an idle page keeps a slot below that one of these could have"

    def fork(self):
        for parent in self._choose(1):
            if not self.crowded:
                child = SeqId(self.next_seq)
                try:
                    self.kv.fork(parent, child)
                except StorageError as error:
                    self._refused(error)
                    self.kv.release(child)
                    self.next_seq += 1
                    return
                self._new(list(self.tokens[parent]))
                self.counts["forked"] += 1

    def truncate(self):
        for seq in self._choose(1):
            kept = self.kv.truncate(seq, self.rng.randint(0, len(self.tokens[seq])))
            del self.tokens[seq][kept:]
            self.counts["truncated"] += 1

    def release(self):
        for seq in self._choose(1):
            if self.rng.random() < 0.5 or len(self.tokens[seq]) > 40:
                self._end(seq)

    def end(self):
        self.pressed = False
        for seq in self.rng.sample(sorted(self.tokens), min(1, len(self.tokens))):
            self._end(seq)

    def _end(self, seq):
        self.kv.release(seq)
        del self.tokens[seq]
        self.prompts.pop(seq, None)
        self.paused.discard(seq)

    def demote(self):
        self.kv.write_behind()
        try:
            self.kv.vm.make_room(self.rng.randint(1, 2), [])
        except StorageError as error:
            self._refused(error)

    def settle(self):
        self.rng.choice([self.kv.vm.settle, self.kv.vm.finish_transfers])()

    def fail(self):
        self.device.fail_next(self.rng.randint(1, 2))
        self.counts["failed"] += 1

    def abandon(self):
        """A step that dies half way must leave everything as it was."""
        if not self.tokens:
            return
        if not (chosen := self._choose(1)):
            return
        plan = self._plan(chosen, BLOCK)
        with pytest.raises((KeyError, StorageError)):
            self._die_half_way(plan)

    def _die_half_way(self, plan):
        with self.kv.stage(plan) as staged:
            next(staged.rounds(0))
            raise KeyError

    def _new(self, tokens):
        seq = self._name()
        self.tokens[seq] = tokens
        return seq

    def _name(self):
        self.next_seq += 1
        return SeqId(self.next_seq - 1)

    def _choose(self, count):
        awake = sorted(self.tokens.keys() - self.paused)
        return sorted(self.rng.sample(awake, min(count, len(awake))))

    def _more(self, seq, count):
        """The tokens a sequence goes on with: those of its prompt, then any."""
        done = len(self.tokens[seq])
        given = self.prompts.get(seq, [])[done : done + count]
        return given + [self.rng.randrange(1 << 30) for _ in range(count - len(given))]

    def _plan(self, sequences, longest):
        free = self.kv.vm.ledger.capacity(Tier.DEVICE) - len(self.tokens.keys() - self.paused)
        longest = min(longest, max(1, free - 1) * BLOCK)
        lengths = {seq: len(self.tokens[seq]) for seq in sequences}
        spans = tuple(Span(seq, n, self.rng.randint(1, longest), True) for seq, n in lengths.items())
        return Plan(spans, spills=self.rng.random() < 0.7)

    def _run(self, sequences, longest):
        plan = self._plan(sequences, longest)
        if not plan.spans:
            return
        if self.rng.random() < 0.7:
            plan = self.kv.gather(plan)
        fresh = {span.seq: self._more(span.seq, span.count) for span in plan.spans}
        wanted = {seq: self.tokens[seq] + more for seq, more in fresh.items()}
        try:
            with self.kv.stage(plan) as staged:
                for layer in range(LAYERS):
                    self._append(staged, layer, [token for span in plan.spans for token in fresh[span.seq]])
                    self._read(staged, layer, plan, wanted)
        except StorageError as error:
            self._refused(error)
            return
        self.counts["run"] += 1
        self.counts["streamed"] += staged.streamed_pages
        self._commit(plan, staged.lost, wanted)

    def _commit(self, plan, lost, wanted):
        for seq, valid in lost.items():
            kept = self.kv.truncate(seq, valid)
            assert kept <= valid
            del self.tokens[seq][kept:]
            self.counts["lost"] += 1
        along = [unit for unit in self.kv.vm.ledger.units() if self.kv.vm.ledger.lowered(unit)]
        for span in plan.spans:
            if span.seq not in lost and self.rng.random() < 0.9:  # else: appended, never committed
                self.tokens[span.seq] = wanted[span.seq]
                self.kv.commit(span.seq, span.count, wanted[span.seq])
        self.counts["stale"] += sum(not self.kv.vm.ledger.sealed(unit) for unit in along)
        if self.rng.random() < 0.7:
            self.kv.write_behind()

    def _append(self, staged, layer, tokens):
        for address, offset, token in zip(staged.targets(layer), staged.offsets, tokens, strict=True):
            data = content(token, layer)
            ctypes.memmove(int(address) + int(offset) * TOKEN_BYTES, data, TOKEN_BYTES)

    def _read(self, staged, layer, plan, wanted):
        """What a kernel would read must be the bytes of the right tokens, in position order, or be reported lost."""
        seen: dict[SeqId, int] = {}
        starts = np.cumsum([0, *(span.count for span in plan.spans)])
        for chunk, parts in staged.rounds(layer):
            for segment, first in zip(chunk.segments.tolist(), chunk.first_page.tolist(), strict=True):
                sharers = plan.spans[slice(*np.searchsorted(starts, segment[:2]))]
                self.counts["shared"] += len(sharers) > 1
                for seq, index in ((span.seq, at) for span in sharers for at in range(segment[3])):
                    previous, seen[seq] = seen.get(seq, -1), first + index
                    if seq not in staged.lost:
                        assert previous == first + index - 1, "pages out of order"
                        self._compare(parts[segment[2] + index], wanted[seq], first + index, layer)
        for span in plan.spans:
            assert seen[span.seq] == (span.end - 1) // BLOCK, "pages missing"

    def _compare(self, address, tokens, page, layer):
        expected = b"".join(content(token, layer) for token in tokens[page * BLOCK : (page + 1) * BLOCK])
        assert ctypes.string_at(int(address), len(expected)) == expected
