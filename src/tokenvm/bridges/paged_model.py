"""A model, its tokenizer and its memory in one object: load, limit, generate, measure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from tokenvm.bridges.library import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from tokenvm.bridges.patch import disable_paging, enable_paging
from tokenvm.config import MemoryConfig, parse_size
from tokenvm.errors import ModelError, RequestError


@dataclass(frozen=True, slots=True)
class Generated:
    """What `generate(..., measure_memory=True)` returns.

    `peak_memory_gb` is what counts against `vram_limit` at its highest: weights, pages on the device and the ring.
    """

    sequences: torch.Tensor
    text: str
    peak_memory_gb: float
    tokens_per_second: float


class MemoryScope:
    """The memory of a model within a `with` block; its pages are given back at the end."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def peak_memory_gb(self) -> float:
        """See `Generated.peak_memory_gb`."""
        return peak_bytes(self._model) / 1e9

    def stats(self) -> dict[str, Any]:
        """See `Pager.stats`."""
        found: dict[str, Any] = self._model.tokenvm.stats()
        return found


class PagedModel:
    """A Transformers model whose KV is paged. `model` and `tokenizer` are those of Transformers."""

    def __init__(self, model: Any, tokenizer: Any = None, memory_config: MemoryConfig | None = None) -> None:
        self.tokenizer = tokenizer
        self._config = memory_config or MemoryConfig()
        self.model = enable_paging(model, self._config)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, memory_config: MemoryConfig | None = None, **options: Any
    ) -> Self:
        """Load a folder or a hub model; `options` go to `from_pretrained` of Transformers: dtype, token, revision...

        Raises ModelError, in one line, where it is not here and cannot be fetched.
        """
        names = ("token", "revision", "local_files_only")
        shared: dict[str, Any] = {name: options[name] for name in names if name in options}
        try:
            config = AutoConfig.from_pretrained(path, **shared)
            kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            model = kind.from_pretrained(path, **options).eval()
        except (OSError, ValueError) as error:
            raise ModelError(_not_loaded(path, error)) from error
        return cls(model, _tokenizer(path, shared), memory_config)

    def set_memory_limit(self, limit: str | int) -> None:
        """Let weights and pages on the device take so many bytes from now on; pages that are there go.

        Raises LimitTooSmall, and then the old limit holds.
        """
        changed = self._config.model_copy(update={"vram_limit": parse_size(limit, "vram_limit")})
        disable_paging(self.model)
        try:
            enable_paging(self.model, changed)
        except BaseException:
            enable_paging(self.model, self._config)
            raise
        self._config = changed

    def generate(
        self,
        prompt: torch.Tensor | str,
        *,
        temperature: float | None = None,
        measure_memory: bool = False,
        **options: Any,
    ) -> Any:
        """Generate from token ids [B, T], which gives ids, or from a text, which gives a text.

        `temperature` above 0 samples, 0 is greedy; `options` go to `generate` of Transformers: max_length,
        max_new_tokens, num_beams, ... With `measure_memory` a `Generated` is returned.
        """
        ids = self._ids(prompt)
        if temperature is not None:
            options |= (
                {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
            )
        began_s = time.perf_counter()
        sequences = self.model.generate(ids, **options)
        seconds = time.perf_counter() - began_s
        text = "" if self.tokenizer is None else self.tokenizer.decode(sequences[0], skip_special_tokens=True)
        if not measure_memory:
            return text if isinstance(prompt, str) else sequences
        past = 0 if self.model.config.is_encoder_decoder else ids.shape[1]
        made = sequences.shape[0] * (sequences.shape[1] - past)
        return Generated(sequences, text, peak_bytes(self.model) / 1e9, made / seconds)

    @contextmanager
    def memory_scope(self) -> Iterator[MemoryScope]:
        """Count from zero in a `with` block, and give all pages back at its end."""
        self._restart()
        try:
            yield MemoryScope(self.model)
        finally:
            self._restart()

    def stats(self) -> dict[str, Any]:
        """See `Pager.stats`."""
        found: dict[str, Any] = self.model.tokenvm.stats()
        return found

    def close(self) -> None:
        """Give the memory back; the model is as it was."""
        disable_paging(self.model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _restart(self) -> None:
        disable_paging(self.model)
        enable_paging(self.model, self._config)

    def _ids(self, prompt: torch.Tensor | str) -> torch.Tensor:
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise RequestError("this model came without a tokenizer: give token ids, a tensor [B, T]")
        ids: torch.Tensor = self.tokenizer(prompt, return_tensors="pt").input_ids
        return ids


class PagedLlama(PagedModel):
    """A `PagedModel` by its first name."""


def peak_bytes(model: Any) -> int:
    """Return the most bytes that ever counted against `vram_limit`: weights, pages on the device, the ring."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    stats = model.tokenvm.stats()
    kinds = [stats, *([stats["encoder"]] if "encoder" in stats else [])]
    pages = sum(one["tiers"]["device"]["high_water_bytes"] + one["ring_bytes"] for one in kinds)
    return int(weights + pages)


def _tokenizer(path: str | Path, shared: dict[str, Any]) -> Any:
    """Load the tokenizer; None for weights alone: token ids are given then."""
    if Path(path).is_dir() and not any(Path(path).glob("*token*")):
        return None
    try:
        return AutoTokenizer.from_pretrained(path, **shared)
    except (OSError, ValueError):
        return None


def _not_loaded(path: str | Path, error: Exception) -> str:
    """Say in one line what to set."""
    reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    if Path(path).is_dir():
        return f"{path} is no model that Transformers reads ({reason}): give a folder with config.json and weights"
    return (
        f"{path} is not a folder here and could not be fetched ({reason}): set HF_TOKEN (or --hf-token) if the model "
        "is gated, see that the network is there and HF_HUB_OFFLINE is not set, or give a local folder"
    )
