"""Forked sequences on a tiny model: attending shared pages together changes no bit, resident or streamed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_engine import BLOCK_TOKENS, VOCAB_SIZE, prompt, running, tiny_model

from tokenvm.engine.engine import Engine
from tokenvm.memory.backend import DeviceBackend
from tokenvm.memory.cpu import CpuDevice
from tokenvm.memory.sim import SimDevice
from tokenvm.schedule.plan import Plan, Span
from tokenvm.vocab import SeqId

STEPS = 2 * BLOCK_TOKENS
TRUNKS = {SeqId(0): prompt(4 * BLOCK_TOKENS + 5), SeqId(10): prompt(3 * BLOCK_TOKENS + 1, seed=1)}


@dataclass
class Grove:
    """Two trunks with branches, decoded greedily, each branch a little beside what the model says.

    `heard`: the bytes of every step's logits of every sequence.
    """

    engine: Engine
    gathers: bool
    tokens: dict[SeqId, list[int]] = field(default_factory=dict)
    heard: dict[tuple[int, SeqId], bytes] = field(default_factory=dict)
    pages: list[tuple[int, int]] = field(default_factory=list)  # resident and streamed, of each decode step

    def grow(self) -> None:
        for seq, ids in TRUNKS.items():
            self.engine.kvcache.create(seq)
            self.tokens[seq] = list(ids)
            for start in range(0, len(ids) - 1, 32):
                self.run((Span(seq, start, min(32, len(ids) - 1 - start), False),))
        self.branch(0, 1, 2)
        self.branch(10, 11)
        for step in range(STEPS):
            if step == BLOCK_TOKENS + 3:
                self.branch(1, 3)
            self.decode(step)

    def branch(self, parent: int, *children: int) -> None:
        for child in map(SeqId, children):
            self.engine.kvcache.fork(SeqId(parent), child)
            self.tokens[child] = list(self.tokens[SeqId(parent)])
            self.tokens[child][-1] = (self.tokens[child][-1] + 3 * child) % VOCAB_SIZE

    def decode(self, step: int) -> None:
        order = [SeqId(seq) for seq in (0, 10, 2, 11, 1, 3) if SeqId(seq) in self.tokens]
        spans = tuple(Span(seq, len(self.tokens[seq]) - 1, 1, True) for seq in order)
        logits = self.run(spans)
        for seq, row in logits.items():
            self.heard[step, seq] = row.tobytes()
            self.tokens[seq].append((int(row.argmax()) + seq) % VOCAB_SIZE)

    def run(self, spans: tuple[Span, ...]) -> dict[SeqId, np.ndarray]:
        kvcache, runner = self.engine.kvcache, self.engine.runner
        plan = Plan(spans, spills=True)
        plan = kvcache.gather(plan) if self.gathers else plan
        ids = [token for span in plan.spans for token in self.tokens[span.seq][span.start : span.end]]
        with kvcache.stage(plan) as staged:
            rows = runner.run(plan, ids, staged).numpy()
        assert not staged.lost
        for span in plan.spans:
            kvcache.commit(span.seq, span.count, self.tokens[span.seq])
        kvcache.write_behind()
        kvcache.check()
        if len(spans) > 1:
            self.pages.append((staged.resident_pages, staged.streamed_pages))
        return dict(zip(plan.sampled, rows, strict=True))

    def fell(self) -> None:
        for seq in self.tokens:
            self.engine.kvcache.release(seq)


def grown(folder: Path, gathers: bool, dtype: torch.dtype = torch.bfloat16, **limits: object) -> Grove:
    """Grow a grove on an engine with these limits; without `gathers`, each sequence attends alone."""
    limits |= {"max_num_seqs": 6, "shared_attention": gathers}
    with running(tiny_model(dtype), folder, **limits) as engine:  # type: ignore[arg-type]
        grove = Grove(engine, gathers)
        grove.grow()
        grove.fell()
    return grove


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_together_and_alone_where_all_is_resident(
    dtype: torch.dtype, kv_cache_dtype: str, tmp_path: Path
) -> None:
    alone, together = (
        grown(tmp_path, gathers, dtype, kv_cache_dtype=kv_cache_dtype) for gathers in (False, True)
    )
    assert together.tokens == alone.tokens
    assert together.heard == alone.heard
    assert all(once < each for (once, _), (each, _) in zip(together.pages, alone.pages, strict=True))


@pytest.mark.parametrize("backend", [SimDevice, CpuDevice])
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_together_and_alone_where_pages_are_streamed(
    kv_cache_dtype: str, backend: type[DeviceBackend], tmp_path: Path
) -> None:
    """A shared page is streamed once a layer, however many sequences attend it."""
    limits = {"device_pages": 7 if kv_cache_dtype == "auto" else 13, "kv_cache_dtype": kv_cache_dtype}
    roomy = grown(tmp_path, True, kv_cache_dtype=kv_cache_dtype)
    alone = grown(tmp_path, False, backend=backend(), **limits)
    together = grown(tmp_path, True, backend=backend(), **limits)
    assert together.heard == alone.heard == roomy.heard
    assert all(streamed > 0 for _, streamed in together.pages)
    distinct = [resident + streamed for resident, streamed in together.pages]
    assert distinct == [resident for resident, _ in roomy.pages]
    assert sum(streamed for _, streamed in together.pages) < sum(streamed for _, streamed in alone.pages)
