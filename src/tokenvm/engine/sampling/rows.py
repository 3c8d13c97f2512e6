"""What a choice depends on beside the logits: parameters, seed, counters, and tokens that were there before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tokenvm.engine.sampling.bans import Bans
from tokenvm.engine.sampling.choice import Ids, Row
from tokenvm.engine.sampling.structure import Structure
from tokenvm.schedule.sampling_params import SamplingParams


class Tally:
    """Distinct tokens, and how often each was produced. Entering one more takes constant time."""

    def __init__(self, known: Iterable[int] = ()) -> None:
        self._ids = np.unique(np.fromiter(known, dtype=np.int64))
        self._counts = np.zeros(self._ids.size)
        self._place = {token: at for at, token in enumerate(self._ids.tolist())}

    @property
    def ids(self) -> Ids:
        """The tokens, int64 [distinct], in no order."""
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> NDArray[np.float64]:
        """How often each was produced, float64 [distinct]; 0 for what only the prompt has."""
        return self._counts[: len(self._place)]

    def enter(self, token: int) -> None:
        """Count a token that was produced."""
        at = self._place.setdefault(token, len(self._place))
        if at == self._ids.size:
            self._ids = np.append(self._ids, np.zeros(at + 16, dtype=np.int64))
            self._counts = np.append(self._counts, np.zeros(at + 16))
        self._ids[at] = token
        self._counts[at] += 1.0


class RowState:
    """One sequence's side of sampling. `index` is that of the token to come.

    `completion` is which of a request's `n` sequences it is, `ends` the tokens that end a text unless ignored,
    `structure` what its answer must look like.
    """

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        *,
        vocab_size: int,
        completion: int = 0,
        prompt: Sequence[int] = (),
        ends: Collection[int] = (),
        structure: Structure | None = None,
    ) -> None:
        self.params = params
        self.seed = seed
        self.completion = completion
        self.index = 0
        self._bans = Bans(params, vocab_size, ends, structure)
        bias = params.logit_bias or {}
        self._biased = np.array(list(bias), dtype=np.int64)
        self._bias = np.array(list(bias.values()), dtype=np.float64)
        self._tally = _tally(params, prompt)
        self._edits = bool(bias) or self._tally is not None

    @property
    def changes(self) -> bool:
        """Whether the next token's logits are changed before temperature and cuts."""
        return self._edits or self._bans.any

    def enter(self, token: int) -> None:
        """Go on behind a produced token."""
        self.index += 1
        self._bans.enter(token)
        if self._tally is not None:
            self._tally.enter(token)

    def changed(self, row: Row) -> Row:
        """Return the logits after bias, penalties and bans; `row` itself stays as it is.

        Only what these name is touched, in float64, and rounded once.
        """
        if not self.changes:
            return row
        row = row.copy()
        if self._biased.size:
            row[self._biased] = row[self._biased].astype(np.float64) + self._bias
        if self._tally is not None:
            row[self._tally.ids] = self._penalised(row, self._tally)
        self._bans.apply(row)
        return row

    @property
    def structure(self) -> Structure | None:
        """What its answer must look like."""
        return self._bans.structure

    def _penalised(self, row: Row, tally: Tally) -> NDArray[np.float64]:
        params, values, counts = self.params, row[tally.ids].astype(np.float64), tally.counts
        repetition = params.repetition_penalty
        values = np.where(values > 0, values / repetition, values * repetition)
        return values - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)


def _tally(params: SamplingParams, prompt: Sequence[int]) -> Tally | None:
    """Return what counts tokens for the penalties that are asked for; only one of them looks at the prompt."""
    if params.repetition_penalty != 1.0:
        return Tally(prompt)
    return Tally() if params.frequency_penalty or params.presence_penalty else None
