"""Sequences whose KV was never computed: their pages are filled with bytes made or kept before.

It saves the reading of a long prompt where only the time of what follows is asked for.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenvm.engine.engine import Engine
from tokenvm.kernels.paging import PartGeometry, copy
from tokenvm.schedule.plan import Plan, Span
from tokenvm.schedule.request import Request
from tokenvm.vocab import SeqId

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Pages:
    """Bytes of whole pages, uint8 [n, layers, part_bytes]; a longer sequence begins again with the first one."""

    parts: Bytes

    def page(self, index: int) -> Bytes:
        """Return the parts of a sequence's `index`-th page, [layers, part_bytes]."""
        page: Bytes = self.parts[index % len(self.parts)]
        return page

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return self.parts.nbytes


def random_pages(geometry: PartGeometry, layers: int, count: int = 4, seed: int = 0) -> Pages:
    """Return pages of normally distributed keys and values."""
    import torch

    rows = torch.randn(
        count,
        layers,
        geometry.part_bytes // geometry.dtype.itemsize,
        generator=torch.Generator().manual_seed(seed),
    )
    return Pages(rows.to(geometry.dtype).view(torch.uint8).numpy())


def computed_pages(engine: Engine, seq: SeqId) -> Pages:
    """Copy the sealed pages of a sequence all of whose pages are on the device."""
    kvcache, layout = engine.kvcache, engine.kvcache.vm.layout
    length = kvcache.length_tokens(seq)
    sealed = length // kvcache.block_tokens
    parts = np.empty((sealed, layout.layers, layout.part_bytes), np.uint8)
    with kvcache.stage(Plan((Span(seq, length, 1, True),))) as staged:
        for layer in range(layout.layers):
            *_, (_, addresses) = staged.rounds(layer)
            for page in range(sealed):
                copy(parts[page, layer].ctypes.data, int(addresses[page]), layout.part_bytes)
    return Pages(parts)


def add_seeded(engine: Engine, request: Request, pages: Pages) -> SeqId:
    """Add a request whose prompt needs no reading but for its last tokens: all full pages before them are filled.

    Returns its sequence. The engine goes on as if it had computed the pages itself.
    """
    (seq,) = engine.add(request)
    kvcache = engine.kvcache
    block = kvcache.block_tokens
    kvcache.create(seq)
    whole = (len(request.prompt_token_ids) - 1) // block
    for index in range(whole):
        plan = Plan((Span(seq, index * block, block, False),))
        with kvcache.stage(plan) as staged:
            for layer, part in enumerate(pages.page(index)):
                ctypes.memmove(int(staged.targets(layer)[0]), part.ctypes.data, part.nbytes)
        kvcache.commit(seq, block, request.prompt_token_ids)
        kvcache.write_behind()
    engine.scheduler.sequence(seq).computed = whole * block
    return seq
