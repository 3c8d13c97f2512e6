"""Hugging Face Transformers as the reference: the same folder, float32, eager attention, its own KV cache."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tokenvm.errors import ConfigError, ModelError


class Reference:
    """A model that Transformers runs, one sequence at a time.

    Raises ConfigError where Transformers is not installed, ModelError where it cannot read the folder.
    """

    def __init__(self, folder: Path) -> None:
        library = _transformers()
        library.utils.logging.disable_progress_bar()
        try:
            self._model: Any = library.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"Transformers cannot read {folder} ({error}): pass a Hugging Face folder"
            ) from error
        self._past: Any = None

    def begin(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Start a new sequence with a prompt; return the logits fp32 [vocab_size] after its last token."""
        self.end()
        return self._forward(token_ids)

    def feed(self, token_id: int) -> torch.Tensor:
        """Add one token to the sequence; return the logits fp32 [vocab_size] after it."""
        assert self._past is not None, "Reference.feed before begin"
        with _one_thread():
            return self._forward([token_id])

    def end(self) -> None:
        """Forget the sequence and free its KV cache."""
        self._past = None

    def _forward(self, token_ids: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([list(token_ids)], dtype=torch.int64)
        with torch.inference_mode():
            answer = self._model(ids, past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self._past = answer.past_key_values
        logits: torch.Tensor = answer.logits[0, -1]
        return logits


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: a row is too little work to share, and sharing is slow where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            f'comparing with Transformers needs it ({error}): type pip install "tokenvm[verify]"'
        ) from error
