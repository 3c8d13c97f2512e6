"""What a patched model carries: its pages, and a `generate` that uses them."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any, Literal

from tokenvm.bridges.attention import NAME
from tokenvm.bridges.chunks import Forward, chunked
from tokenvm.bridges.encoder_cache import LayerwiseCache, PagedPair
from tokenvm.bridges.kv_store import KvStore
from tokenvm.bridges.paged_cache import PagedCache
from tokenvm.bridges.probe import Shape
from tokenvm.errors import ConfigError, RequestError

Path = Literal["kernel", "gather"]


class Pager:
    """The pages of one model, reached as `model.tokenvm`. `stores` are of the decoder and, if any, of what it heard.

    `path` says who attends: "kernel", our attention over pages where they lie, or "gather", the model's own
    over copies. `reason` says why, where it is the latter. Threads take turns: one `generate` or pass at a time.
    """

    def __init__(self, model: Any, shape: Shape, stores: list[KvStore], reason: str) -> None:
        self.shape = shape
        self.reason = reason
        self.path: Path = "gather" if reason else "kernel"
        self._model = model
        self._stores = stores
        self._before = model.config._attn_implementation
        self._generate: Callable[..., Any] = model.generate
        self._plain: Forward = model.forward
        self._lock = threading.RLock()
        self._closed = False
        self.forward = self._guarded(
            chunked(self._plain, self.store, model.config.get_text_config(decoder=True))
        )
        self._prepare: Callable[..., Any] = model.prepare_inputs_for_generation
        self._ours: dict[str, Any] = {
            "tokenvm": self,
            "generate": self.generate,
            "forward": self.forward,
            "prepare_inputs_for_generation": self._keeping(self._prepare),
        }
        self._theirs = {name: model.__dict__[name] for name in self._ours if name in model.__dict__}
        if not reason:
            model.set_attn_implementation(NAME)
        model.__dict__.update(self._ours)

    @property
    def store(self) -> KvStore:
        """The pages of what the decoder said."""
        return self._stores[0]

    def new_cache(self) -> PagedCache | PagedPair:
        """Make an empty cache, to be given to the model as `past_key_values`. Its pages go when it does."""
        if self._closed:
            raise ConfigError("this model is not paged any more: call enable_paging(model, config) again")
        said = PagedCache(self.store, self.shape.sizes, attends=self.path == "kernel")
        if not self.shape.cross:
            return said
        return PagedPair(said, LayerwiseCache(self._stores[1], self.shape.sizes))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as the model does, with a cache of pages unless one is given or `use_cache=False`."""
        if self._closed:
            return self._generate(*args, **kwargs)
        with self._lock:
            return self._generate_alone(*args, **kwargs)

    def _generate_alone(self, *args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("generation_config") or self._model.generation_config
        if kwargs.get("past_key_values") is not None or kwargs.get("use_cache", config.use_cache) is False:
            return self._generate(*args, **kwargs)
        if kwargs.get("cache_implementation", config.cache_implementation) is not None:
            raise ConfigError(
                "cache_implementation and paging are two caches: leave it out, or call disable_paging(model)"
            )
        cache = self.new_cache()
        kwargs["past_key_values"] = cache
        output = None
        try:
            output = self._generate(*args, **kwargs)
            return output
        finally:
            if getattr(output, "past_key_values", None) is not cache:
                cache.close()

    def stats(self) -> dict[str, Any]:
        """Return what moved, as plain values: those of `LLM.stats`, the path, and for a second store "encoder"."""
        found = {"path": self.path, "reason": self.reason, **self.store.stats()}
        if self.shape.cross:
            found["encoder"] = self._stores[1].stats()
        return found

    def close(self) -> None:
        """Let the model be as it was, and give the memory back; idempotent. What others set since stays."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._give_back()

    def _give_back(self) -> None:
        for name, ours in self._ours.items():
            if self._model.__dict__.get(name) == ours:
                del self._model.__dict__[name]
                self._model.__dict__.update({name: self._theirs[name]} if name in self._theirs else {})
        if self.path == "kernel":
            self._model.set_attn_implementation(self._before)
        for store in self._stores:
            store.close()

    def _guarded(self, forward: Forward) -> Forward:
        """Let one thread pass at a time, and what others hold of it be the plain one once paging has ended."""

        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._closed:
                return self._plain(*args, **kwargs)
            with self._lock:
                return forward(*args, **kwargs)

        return call

    def _keeping(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        """Refuse to go on without the pages that were given: a model may drop its cache at a length of its own."""

        @functools.wraps(prepare)
        def call(*args: Any, **kwargs: Any) -> Any:
            inputs = prepare(*args, **kwargs)
            paged = isinstance(kwargs.get("past_key_values"), PagedCache | PagedPair)
            if paged and not isinstance(inputs.get("past_key_values"), PagedCache | PagedPair):
                raise RequestError(
                    f"{self._model.config.model_type} drops its cache at this length, so it would not be paged: make "
                    "prompt and answer shorter (than original_max_position_embeddings, where its config has that), or "
                    "type disable_paging(model)"
                )
            return inputs

        return call

    def __deepcopy__(self, memo: dict[int, Any]) -> Pager:
        """Refuse to be copied with the model: pages have one owner."""
        raise copy.Error("a paged model cannot be copied: call disable_paging(model) first")
