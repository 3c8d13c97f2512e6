"""Random lives of pages over three small tiers; every law holds after every step."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TypeVar

import hypothesis.strategies as st
from hypothesis import Phase, given, settings

from tokenvm.residency.keys import page_key
from tokenvm.residency.ledger import Ledger
from tokenvm.residency.page_table import PageTable
from tokenvm.vocab import Answer, Move, SeqId, SlotId, Tier, UnitId

BLOCK_TOKENS = 4
MAX_SEQUENCES = 4
STEPS = {
    "add": 1, "grow": 5, "fork": 2, "truncate": 1, "remove": 1, "retain": 1, "release": 2,
    "pin": 1, "unpin": 1, "begin": 6, "land": 4, "fail": 2, "drop": 6, "lose": 2,
}  # fmt: skip
"""Every step with its weight."""
STEPS_A_SPELL = 16

T = TypeVar("T")
Places = dict[tuple[UnitId, Tier], SlotId]


class PageLives:
    """Does to a ledger and a page table what the layers above may do, and keeps its own account."""

    def __init__(self, device: int, host: int, disk: int, done: Counter[str]) -> None:
        self.done = done
        self.ledger = Ledger({Tier.DEVICE: device, Tier.HOST: host, Tier.DISK: disk})
        self.table = PageTable(BLOCK_TOKENS)
        self.moves: list[Move] = []
        self.pins: list[tuple[UnitId, SlotId]] = []
        self.extra: list[UnitId] = []  # owners other than sequences
        self.next_seq = 0
        self.before: Places = {}
        self.version = self.ledger.version

    def spell(self, random: Random) -> None:
        """Take some steps and hold the laws after each."""
        self.random = random
        for step in random.choices(list(STEPS), list(STEPS.values()), k=STEPS_A_SPELL):
            getattr(self, step)()
            self.done["steps"] += 1
            self.laws()
            self.alive_is_what_is_needed()
            self.changes_are_announced()

    def note(self, what: str) -> None:
        self.done[what] += 1

    # Sequences

    def add(self) -> None:
        if len(self.table.sequences()) < MAX_SEQUENCES:
            self.table.add(self._new_seq())

    def grow(self) -> None:
        seq = self._some_sequence()
        tokens = self.random.randint(0, 2 * BLOCK_TOKENS)
        length = self.table.length_tokens(seq) + tokens
        if self.table.missing_pages(seq, length) > self.ledger.free(Tier.DEVICE):
            return
        for _ in range(self.table.missing_pages(seq, length)):
            self.table.append(seq, self.ledger.create(Tier.DEVICE))
        for unit in self.table.advance(seq, tokens):
            self.ledger.seal(unit)
            self.table.add_key(seq, page_key(b"", b"", self.table.last_key(seq), [unit]))
            self.note("seal")

    def fork(self) -> None:
        parent = self._some_sequence()
        sealed, tail = divmod(self.table.length_tokens(parent), BLOCK_TOKENS)
        if len(self.table.sequences()) >= MAX_SEQUENCES or (tail and not self.ledger.free(Tier.DEVICE)):
            return
        child = self._new_seq()
        shared = self.table.fork(parent, child)
        assert shared == self.table.pages(parent)[:sealed]
        for unit in shared:
            self.ledger.retain(unit)
        if tail:
            self.table.append(child, self.ledger.create(Tier.DEVICE))
            self.table.advance(child, tail)
        assert self.table.length_tokens(child) == self.table.length_tokens(parent)
        self.note("fork with shared pages" if shared else "fork")

    def truncate(self) -> None:
        seq = self._some_sequence()
        length = self.table.length_tokens(seq)
        tokens = self.random.randint(max(0, length - 2 * BLOCK_TOKENS), length)
        if tokens // BLOCK_TOKENS < length // BLOCK_TOKENS:
            tokens -= tokens % BLOCK_TOKENS
        self._truncate(seq, tokens)
        self.note("truncate")

    def remove(self) -> None:
        if len(self.table.sequences()) > 2:
            for unit in self.table.remove(self._some_sequence()):
                self.ledger.release(unit)
            self.note("remove")

    # Owners and pins

    def retain(self) -> None:
        if (unit := self._some_unit()) is not None and len(self.extra) < 3:
            self.ledger.retain(unit)
            self.extra.append(unit)

    def release(self) -> None:
        if self.extra:
            self.ledger.release(self._pull(self.extra))
            self.note("release")

    def pin(self) -> None:
        unit = self._some_unit()
        if unit is not None and self.ledger.resident(unit, Tier.DEVICE):
            self.ledger.pin([unit])
            self.pins.append((unit, self.ledger.slot(unit, Tier.DEVICE)))
            self.note("pin")

    def unpin(self) -> None:
        if self.pins:
            unit, _ = self._pull(self.pins)
            self.ledger.unpin([unit])

    # Copies

    def begin(self) -> None:
        unit, tier = self._some_unit(), self.random.choice([Tier.DEVICE, *Tier])
        if unit is None or self._has_copy(unit, tier) or not self.ledger.free(tier):
            return
        found = self.ledger.find(unit)
        assert found.answer is Answer.HIT
        move = self.ledger.begin(unit, found.tier, tier)
        assert (move.source, move.source_slot) == (found.tier, found.slot)
        assert self.ledger.arriving(unit, tier)
        self.moves.append(move)
        self.note(f"begin to {tier.name}")

    def land(self) -> None:
        if self.moves:
            move = self._pull(self.moves)
            owned = self._owners()[move.unit]
            self.ledger.land(move)
            assert not owned or self.ledger.resident(move.unit, move.target)
            self.note("land" if owned else "land of a page nobody owns")

    def fail(self) -> None:
        if self.moves:
            move = self._pull(self.moves)
            owned = self._owners()[move.unit]
            self.ledger.fail(move)
            assert not owned or not self._has_copy(move.unit, move.target)
            self.note("fail" if owned else "fail of a page nobody owns")

    def drop(self) -> None:
        unit, tier = self._some_unit(), self.random.choice([Tier.DEVICE, *Tier])
        if unit is None:
            return
        others = [t for t in Tier if t is not tier and self.ledger.resident(unit, t)]
        allowed = (
            self.ledger.resident(unit, tier)
            and bool(others)
            and not self._read_by_a_move(unit, tier)
            and not (tier is Tier.DEVICE and self.ledger.pinned(unit))
        )
        assert self.ledger.droppable(unit, tier) == allowed
        if allowed:
            self.ledger.drop(unit, tier)
            self.note(f"drop from {tier.name}")

    def lose(self) -> None:
        unit, tier = self._some_unit(), self.random.choice([Tier.HOST, Tier.DISK])
        if unit is None or not self.ledger.resident(unit, tier) or self._read_by_a_move(unit, tier):
            return
        gone = self.ledger.lose(unit, tier)
        assert gone == (not any(self._has_copy(unit, other) for other in Tier))
        if gone:
            assert self.ledger.find(unit).answer is Answer.MISS
            self._let_go(unit)
        self.note("lose the last copy" if gone else "lose")

    # Laws

    def laws(self) -> None:
        self.done["steps"] += 1
        self.ledger.check()
        self.table.check()
        for move in self.moves:
            assert self.ledger.slot(move.unit, move.source) == move.source_slot
            assert self.ledger.slot(move.unit, move.target) == move.target_slot
        for unit, slot in self.pins:
            assert self.ledger.slot(unit, Tier.DEVICE) == slot

    def alive_is_what_is_needed(self) -> None:
        owners = self._owners()
        pinned = {unit for unit, _ in self.pins}
        assert set(self.ledger.units()) == {*owners, *pinned, *(move.unit for move in self.moves)}
        for unit in owners:
            assert self.ledger.find(unit).answer is Answer.HIT

    def changes_are_announced(self) -> None:
        now: Places = {
            (unit, tier): self.ledger.slot(unit, tier)
            for unit in self.ledger.units()
            for tier in Tier
            if self.ledger.resident(unit, tier)
        }
        freed = self.ledger.drain_freed()
        device = {place: slot for place, slot in now.items() if place[1] is Tier.DEVICE}
        device_before = {place: slot for place, slot in self.before.items() if place[1] is Tier.DEVICE}
        for place, slot in device_before.items():
            assert place in now or slot in freed
        for place in now.keys() & self.before.keys():
            assert now[place] == self.before[place], "a whole copy never changes its slot"
        if device != device_before:
            assert self.ledger.version > self.version
        self.before, self.version = now, self.ledger.version

    # The account

    def _new_seq(self) -> SeqId:
        self.next_seq += 1
        return SeqId(self.next_seq)

    def _some_sequence(self) -> SeqId:
        if not self.table.sequences():
            self.table.add(self._new_seq())
        sequences = self.table.sequences()
        return self.random.choice(sequences)

    def _some_unit(self) -> UnitId | None:
        owned = list(self._owners())
        return self.random.choice(owned) if owned else None

    def _pull(self, items: list[T]) -> T:
        return items.pop(self.random.randrange(len(items)))

    def _owners(self) -> Counter[UnitId]:
        tables = [unit for seq in self.table.sequences() for unit in self.table.pages(seq)]
        return Counter(tables + self.extra)

    def _has_copy(self, unit: UnitId, tier: Tier) -> bool:
        return self.ledger.resident(unit, tier) or self.ledger.arriving(unit, tier)

    def _read_by_a_move(self, unit: UnitId, tier: Tier) -> bool:
        return any(move.unit == unit and move.source is tier for move in self.moves)

    def _truncate(self, seq: SeqId, tokens: int) -> None:
        for unit in self.table.truncate(seq, tokens):
            self.ledger.release(unit)

    def _let_go(self, unit: UnitId) -> None:
        """Every owner of a lost page gives it up; sequences fall back to the page before it."""
        for seq in self.table.sequences():
            if unit in self.table.pages(seq):
                first_token = self.table.pages(seq).index(unit) * BLOCK_TOKENS
                self._truncate(seq, min(first_token, self.table.length_tokens(seq)))
        while unit in self.extra:
            self.extra.remove(unit)
            self.ledger.release(unit)
        assert unit not in set(self.ledger.units())


SIZES = st.tuples(*[st.integers(3, 8)] * len(Tier))


def test_laws_hold_after_every_step_of_random_lives() -> None:
    done: Counter[str] = Counter()

    @settings(max_examples=130, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
    @given(sizes=SIZES, seeds=st.lists(st.integers(0, 2**32), min_size=6, max_size=10))
    def live(sizes: tuple[int, int, int], seeds: list[int]) -> None:
        lives = PageLives(*sizes, done)
        for seed in seeds:
            lives.spell(Random(seed))

    live()
    assert done["steps"] >= 10_000, done
    paths = ("fork with shared pages", "truncate", "remove", "release", "pin", "land", "fail", "lose")
    rare = ("lose the last copy", "land of a page nobody owns", "fail of a page nobody owns")
    moves = tuple(f"{verb} {tier.name}" for verb in ("begin to", "drop from") for tier in Tier)
    assert all(done[path] >= 20 for path in paths + moves), done
    assert all(done[path] >= 5 for path in rare), done
