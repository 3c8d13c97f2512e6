"""A cache of Transformers whose layers are parts of our pages."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tokenvm.bridges.attention import refuse_gradient, remember
from tokenvm.bridges.kv_step import KvStep
from tokenvm.bridges.kv_store import KvStore, Rows
from tokenvm.bridges.library import Cache, CacheLayerMixin
from tokenvm.bridges.masks import MaskRequest
from tokenvm.errors import RequestError


class PagedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One attention layer of a `PagedCache`.

    With `attends`, `update` hands the new keys back with this layer attached, and attention over pages is what appends
    them. Without, it appends them and returns all that is kept, copied, for the model's own attention.
    """

    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, cache: PagedCache, index: int, sizes: tuple[int, int], attends: bool) -> None:
        self._cache = weakref.ref(cache)
        self._index = index
        self._sizes = sizes
        self._attends = attends
        self.is_initialized = True

    @property
    def cache(self) -> PagedCache:
        """The cache it belongs to."""
        found = self._cache()
        assert found is not None, "a layer outlived its cache"
        return found

    @property
    def keys(self) -> torch.Tensor:
        """All keys that are kept, copied, [B, Hkv, L, D]: cross-attention reads them so."""
        return self.cache.read(self._index, self._sizes)[0]

    @property
    def values(self) -> torch.Tensor:
        """All values, as `keys`. They are read together and handed over once."""
        return self.cache.read(self._index, self._sizes)[1]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is made here: the store takes a page when one begins."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take new keys and values [B, Hkv, T, D]; return what attention is to be given."""
        refuse_gradient(key_states, value_states)
        self.cache.store.refuse_closed()
        if self._attends:
            return remember(key_states, self), value_states
        keys, values = self.cache.extend(self._index, key_states, value_states)
        return keys[..., : self._sizes[0]], values[..., : self._sizes[1]]

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: MaskRequest,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        """See `AttendingLayer.attend`."""
        return self.cache.attend(self._index, q, k, v, mask, scale, window)

    def refuse(self, reason: str) -> None:
        """See `AttendingLayer.refuse`."""
        raise RequestError(
            f"attention over pages does not compute {reason}: "
            'call patch_model_attention(model, attention="gather") to let the model attend by itself'
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All that is kept and what comes, from the first token on."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """How many columns this layer has, padding included."""
        return self.cache.columns(self._index)

    def get_max_length(self) -> int:
        """No limit but that of the store."""
        return -1


class PagedCache(Cache):  # type: ignore[misc]
    """KV of one batch in the pages of a `KvStore`; lent by `model.tokenvm.new_cache()`. Its pages go with it.

    `sizes` are the columns of keys and of values of each layer. One thread uses it.
    """

    def __init__(self, store: KvStore, sizes: tuple[tuple[int, int], ...], *, attends: bool) -> None:
        super().__init__([PagedLayer(self, index, size, attends) for index, size in enumerate(sizes)])
        self.store = store
        self._rows = Rows()
        self._step: KvStep | None = None
        self._done = 0  # layers of the pass that is under way
        self._checked: list[tuple[MaskRequest, int]] = []  # masks of this pass, each with its window
        self._read: tuple[int, torch.Tensor, torch.Tensor] | None = None
        self._finalizer = weakref.finalize(self, store.release, self._rows)

    @property
    def rows(self) -> Rows:
        """The sequences of the batch."""
        return self._rows

    def columns(self, layer: int) -> int:
        """How many columns a layer has by now."""
        appended = self._step.columns if self._step is not None and layer < self._done else 0
        return self._rows.columns + appended

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: MaskRequest,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        """Append and attend in one layer; the first begins a pass, the last ends it."""
        refuse_gradient(q)
        self._refuse_half_a_pass(layer)
        if layer == 0:
            self._checked = []
        if not any(mask is known and window == its for known, its in self._checked):
            self._check(layer, mask, window, len(q))
        step = self.turn(layer, mask.kept(self._rows.columns))
        out = step.attend(layer, q, k, v, scale, window)
        self.end(layer)
        return out

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append to one layer, and copy out all of it."""
        step = self.turn(layer, np.ones((k.shape[0], k.shape[2]), np.bool_))
        found = step.extend(layer, k, v)
        self.end(layer)
        return found

    def read(self, layer: int, sizes: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy out one layer without appending. Layers are read in order; a layer is copied once for both halves."""
        if self._read is not None and self._read[0] == layer:
            (_, keys, values), self._read = self._read, None
            return keys, values
        step = self.turn(layer, np.zeros((len(self._rows.seqs), 0), np.bool_))
        keys, values = step.collect(layer)
        self.end(layer)
        self._read = layer, keys[..., : sizes[0]], values[..., : sizes[1]]
        return self._read[1], self._read[2]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Let beams go on from other beams: pages are shared, nothing but open pages is copied."""
        self._pick(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        self._pick([row for row in range(len(self._rows.seqs)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows only."""
        self._pick(torch.arange(len(self._rows.seqs))[indices].tolist())

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last -`tokens_to_remove` columns, and a pass that failed in the middle.

        Raises RequestError for a positive number.
        """
        if tokens_to_remove > 0:
            raise RequestError(
                f"crop({tokens_to_remove}) is not supported: give how many tokens go as crop(-n)"
            )
        self._forget_pass()
        if tokens_to_remove and self._rows.seqs:
            self.store.cut(self._rows, max(0, self._rows.columns + tokens_to_remove))

    def reset(self) -> None:
        """Forget every token; the pages are free."""
        self._forget_pass()
        self.store.release(self._rows)

    def close(self) -> None:
        """Give the pages back now. The cache is empty then; idempotent."""
        self.reset()

    def _check(self, layer: int, mask: MaskRequest, window: int, rows: int) -> None:
        """Refuse a mask that is not what the kernel computes. Layers share masks, so a pass has few of them."""
        past = self._rows.kept if self._rows.seqs else np.zeros((rows, 0), np.bool_)
        if reason := mask.refusal(past, window):
            self.layers[layer].refuse(reason)
        self._checked.append((mask, window))

    def _refuse_half_a_pass(self, layer: int) -> None:
        """A model that begins again has asked how long the first layer is, and was told of the pass that failed."""
        if layer == 0 and self._step is not None:
            raise RequestError(
                "the last forward pass over this cache failed in the middle: call cache.crop(0), then go on"
            )

    def turn(self, layer: int, kept: npt.NDArray[np.bool_]) -> KvStep:
        """Go on with the pass under way; the first layer begins another. RequestError once its store is closed."""
        self.store.refuse_closed()
        if layer == 0:
            self._refuse_half_a_pass(layer)
            self._read = None
            self._step, self._done = self.store.begin(self._rows, kept), 0
        if self._step is None or layer != self._done:
            raise RequestError(
                f"layer {layer} was computed out of order: a forward pass over pages runs every layer once, in order"
            )
        return self._step

    def end(self, layer: int) -> None:
        """A layer is done; the last one ends the pass."""
        self._done = layer + 1
        if self._done == len(self.layers):
            self._step, self._done = None, 0
            self.store.finish()

    def _pick(self, rows: list[int]) -> None:
        if self._rows.seqs:
            self._forget_pass()
            self.store.pick(self._rows, rows)

    def _forget_pass(self) -> None:
        if self._step is not None:
            self._step, self._done = None, 0
            self.store.abandon()
        self._read = None
