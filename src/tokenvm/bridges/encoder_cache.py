"""Caches of encoder-decoder models: what the encoder heard is written once, layer by layer."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import pad

from tokenvm.bridges.kv_store import KvStore
from tokenvm.bridges.library import Cache, EncoderDecoderCache
from tokenvm.bridges.paged_cache import PagedCache


class WrittenOnceCache(PagedCache):
    """One layer whose tokens all come at once, as many as there are, and never change: its pages are all sealed."""

    _length = 0

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write all tokens in as many passes as it takes; return them."""
        self.reset()
        self._length = k.shape[2]
        rest = -self._length % self.store.geometry.block_tokens
        most = self.store.sealed_tokens(k.shape[0])
        whole = [pad(x, (0, 0, 0, rest)) for x in (k, v)]
        for begin in range(0, self._length, most):
            keys, values = (x[:, :, begin : begin + most] for x in whole)
            kept = np.ones((keys.shape[0], keys.shape[2]), np.bool_)
            self.turn(layer, kept).append(layer, keys, values)
            self.end(layer)
        return k, v

    def read(self, layer: int, sizes: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PagedCache.read`."""
        keys, values = super().read(layer, sizes)
        return keys[:, :, : self._length], values[:, :, : self._length]


class LayerwiseCache(Cache):  # type: ignore[misc]
    """A cache whose layers have sequences of their own, in a store of one layer: so any number of tokens comes at once.

    What an encoder heard comes so. Each layer is written in passes that fit the device, before the next layer is.
    """

    def __init__(self, store: KvStore, sizes: tuple[tuple[int, int], ...]) -> None:
        self._caches = [WrittenOnceCache(store, (size,), attends=False) for size in sizes]
        super().__init__([cache.layers[0] for cache in self._caches])

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """See `PagedCache.reorder_cache`."""
        for cache in self._caches:
            cache.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """See `PagedCache.batch_repeat_interleave`."""
        for cache in self._caches:
            cache.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """See `PagedCache.batch_select_indices`."""
        for cache in self._caches:
            cache.batch_select_indices(indices)

    def close(self) -> None:
        """Give the pages back now; idempotent."""
        for cache in self._caches:
            cache.close()


class PagedPair(EncoderDecoderCache):  # type: ignore[misc]
    """The two caches of an encoder-decoder model: what the decoder said, and what the encoder heard."""

    def check_dynamic_cache(self, method: str) -> None:
        """Both halves can do what dynamic caches can."""

    def close(self) -> None:
        """Give the pages of both back now; idempotent."""
        self.self_attention_cache.close()
        self.cross_attention_cache.close()
        self.is_updated: dict[int, bool] = dict.fromkeys(range(len(self)), False)
