"""A page found damaged costs time and nothing else: its sequence is read again, its batch-mates do not notice."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fixtures_engine import Said, prompt, running, speak, tiny_model

from tokenvm.engine.engine import Engine
from tokenvm.vocab import SeqId, Tier, UnitId

DTYPES = [torch.bfloat16, torch.float32]
PROMPTS = [prompt(120), prompt(70), prompt(40)]
VICTIM = SeqId(0)
TOKENS = 24
DEVICE_PAGES = 5


def undamaged(dtype: torch.dtype) -> list[Said]:
    with running(tiny_model(dtype), Path("unused")) as engine:
        return speak(engine, PROMPTS, TOKENS)


def streamed_pages(engine: Engine, seq: SeqId) -> Iterator[tuple[int, UnitId]]:
    """Pages of a sequence that lie on disk and not on the device, with their index."""
    ledger = engine.kvcache.vm.ledger
    for index, unit in enumerate(engine.kvcache._table.pages(seq)):
        if ledger.resident(unit, Tier.DISK) and Tier.DEVICE not in ledger._units[unit].copies:
            yield index, unit


def flip(engine: Engine, unit: UnitId, layer: int, at_byte: int = 77) -> None:
    """Change one byte of one part on disk, behind the store's back."""
    vm = engine.kvcache.vm
    store = vm._stores[Tier.DISK]
    where = store.places([vm.ledger.slot(unit, Tier.DISK)], layer)
    fd = os.open(f"/proc/self/fd/{int(where.fd[0])}", os.O_RDWR)
    try:
        offset = int(where.place[0]) + at_byte
        (old,) = os.pread(fd, 1, offset)
        os.pwrite(fd, bytes([old ^ 0x40]), offset)
        os.fsync(fd)
    finally:
        os.close(fd)


class Vandal:
    """Flips a byte in a streamed page of the victim once it has spoken `after` tokens; watches who falls back."""

    def __init__(self, layers: list[int], after: int = 5, choose: Callable[[list], tuple] = lambda p: p[0]):
        self._layers, self._after, self._choose = layers, after, choose
        self._computed: dict[SeqId, int] = {}
        self.index = -1
        self.fallen: list[tuple[SeqId, int]] = []

    def __call__(self, engine: Engine, _step: int) -> None:
        for seq in engine.scheduler.running:
            sequence = engine.scheduler.sequence(seq)
            if sequence.computed < self._computed.get(seq, 0):
                self.fallen.append((seq, sequence.computed))
            self._computed[seq] = sequence.computed
        if self.index < 0 and VICTIM in engine.scheduler.running:
            self._strike(engine)

    def _strike(self, engine: Engine) -> None:
        engine.kvcache.vm.finish_transfers()
        targets = list(streamed_pages(engine, VICTIM))
        if targets and engine.scheduler.sequence(VICTIM).new_tokens >= self._after:
            self.index, unit = self._choose(targets)
            for layer in self._layers:
                flip(engine, unit, layer)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layers", [[0], [1], [2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("which", [0, -1], ids=["first", "last"])
def test_a_flipped_byte_on_disk(which: int, layers: list[int], dtype: torch.dtype, tmp_path: Path) -> None:
    vandal = Vandal(layers, choose=lambda pages: pages[which])
    with running(tiny_model(dtype), tmp_path, device_pages=DEVICE_PAGES) as engine:
        said = speak(engine, PROMPTS, TOKENS, on_step=vandal)
        assert engine.account.lost_pages == 1
    assert vandal.fallen == [(VICTIM, vandal.index * 16)]
    assert said == undamaged(dtype)


def test_batch_mates_speak_in_the_step_that_finds_the_damage(tmp_path: Path) -> None:
    """One token a step each, as if nothing had happened: only the victim takes more steps."""
    model, vandal = tiny_model(), Vandal([0, 1, 2], after=14)
    running_mates: list[tuple[SeqId, ...]] = []
    spoken: list[tuple[int, list[int]]] = []

    def watch(engine: Engine, step: int) -> None:
        lost = engine.account.lost_pages
        spoken.append((lost, [engine.scheduler.sequence(s).new_tokens for s in engine.scheduler.running]))
        running_mates.append(engine.scheduler.running)
        vandal(engine, step)

    with running(model, tmp_path, device_pages=DEVICE_PAGES) as engine:
        speak(engine, PROMPTS, TOKENS, on_step=watch)
    at = next(step for step, (lost, _) in enumerate(spoken) if lost)
    assert running_mates[at] == running_mates[at - 1] == (0, 1, 2)
    before, after = spoken[at - 1][1], spoken[at][1]
    assert [b - a for a, b in zip(before, after, strict=True)] == [0, 1, 1]


def test_damage_while_a_prompt_is_read(tmp_path: Path) -> None:
    vandal = Vandal([1], after=0)
    with running(tiny_model(), tmp_path, device_pages=DEVICE_PAGES, max_tokens_per_forward=16) as engine:
        said = speak(engine, PROMPTS, TOKENS, on_step=vandal)
        assert engine.account.lost_pages == 1
    assert vandal.fallen == [(VICTIM, vandal.index * 16)]
    assert said == undamaged(torch.bfloat16)


def test_damage_again_and_again(tmp_path: Path) -> None:
    """Every streamed page of every sequence, each time it lies on disk alone, up to ten times."""
    struck: list[UnitId] = []

    def strike(engine: Engine, _step: int) -> None:
        engine.kvcache.vm.finish_transfers()
        for seq in engine.scheduler.running:
            if seq not in engine.kvcache:
                continue
            for _, unit in list(streamed_pages(engine, seq)):
                if unit not in struck and len(struck) < 10:
                    struck.append(unit)
                    flip(engine, unit, 1)

    with running(tiny_model(), tmp_path, device_pages=DEVICE_PAGES) as engine:
        said = speak(engine, PROMPTS, TOKENS, on_step=strike)
        assert engine.account.lost_pages >= 5
    assert len(struck) == 10
    assert said == undamaged(torch.bfloat16)


def test_a_slab_cut_short(tmp_path: Path) -> None:
    """The file ends before the page: nothing can be read, and every page written there comes again."""
    cut = False

    def strike(engine: Engine, _step: int) -> None:
        nonlocal cut
        engine.kvcache.vm.finish_transfers()
        if cut or not list(streamed_pages(engine, VICTIM)):
            return
        store = engine.kvcache.vm._stores[Tier.DISK]
        os.truncate(f"/proc/self/fd/{int(store.places([0], 0).fd[0])}", 0)
        cut = True

    with running(tiny_model(), tmp_path, device_pages=DEVICE_PAGES) as engine:
        said = speak(engine, PROMPTS, TOKENS, on_step=strike)
        assert engine.account.lost_pages > 0
    assert cut
    assert said == undamaged(torch.bfloat16)
