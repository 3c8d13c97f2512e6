"""Tokens that must not come next: beside what an answer must look like, bad words, and ends that are too early."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final

import numpy as np

from tokenvm.engine.sampling.choice import Ids, Row
from tokenvm.engine.sampling.structure import Structure
from tokenvm.schedule.sampling_params import SamplingParams

FORBIDDEN: Final = float(np.finfo(np.float32).min)
"""The logit of a token that must not come. Finite, so that a row of nothing else can still be sampled."""


class Bans:
    """One sequence's side of it. `ends` are the tokens that end a text unless ignored.

    Where a structure or allowed_token_ids leave some tokens and everything else forbids all of these, these may come.
    """

    def __init__(
        self, params: SamplingParams, vocab_size: int, ends: Collection[int], structure: Structure | None
    ) -> None:
        self.structure = structure
        self._min_tokens = params.min_tokens
        last = {*ends, *(params.stop_token_ids or ())} if params.min_tokens else ()
        self._last = [token for token in last if token < vocab_size]
        self._words = tuple(tuple(word) for word in params.bad_words_token_ids or ())
        self._said: deque[int] = deque(maxlen=max(map(len, self._words), default=1))
        self._count = 0
        self._only: Ids | None = None
        if params.allowed_token_ids is not None:
            self._only = np.array(params.allowed_token_ids, dtype=np.int64)

    @property
    def any(self) -> bool:
        """Whether some token may be forbidden next."""
        fixed = self.structure is not None or self._only is not None or self._words
        return bool(fixed) or self._count < self._min_tokens

    def enter(self, token: int) -> None:
        """Go on behind a produced token."""
        self._count += 1
        self._said.append(token)
        if self.structure is not None:
            self.structure.enter(token)

    def apply(self, row: Row) -> None:
        """Change the logits of forbidden tokens, in place."""
        shunned = self._shunned()
        if self.structure is None and self._only is None:
            row[shunned] = FORBIDDEN
            return
        if self.structure is not None:
            kept = self.structure.allowed(row.size)
        else:
            kept = np.zeros(row.size, dtype=np.bool_)
            kept[self._only] = True
        if shunned:
            rest = kept.copy()
            rest[shunned] = False
            kept = rest if rest.any() else kept
        row[~kept] = FORBIDDEN

    def _shunned(self) -> list[int]:
        said = tuple(self._said)
        completed = [word[-1] for word in self._words if said[len(said) - len(word) + 1 :] == word[:-1]]
        return completed + (self._last if self._count < self._min_tokens else [])
