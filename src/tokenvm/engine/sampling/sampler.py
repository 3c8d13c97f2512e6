"""Logits to tokens, for all sequences of a step.

Every choice depends on its own row, its sequence's parameters and tokens, its seed and the index of the token: never on
the batch, a thread count or how often a step had to be repeated. So rows are worked on one after another, each while it
lies in the cache; only what is one pass over memory for all of them, the maxima of greedy rows, is done at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tokenvm.engine.sampling.choice import Choice, Row, describe
from tokenvm.engine.sampling.draw import draw, uniform
from tokenvm.engine.sampling.rows import RowState
from tokenvm.engine.sampling.structure import Structures
from tokenvm.schedule.request import Request
from tokenvm.schedule.request import Sequence as TokenSequence
from tokenvm.tokenizer import Tokenizer
from tokenvm.vocab import SeqId


def sample(logits: NDArray[np.float32], rows: Sequence[RowState]) -> list[Choice]:
    """Choose the next token of each row: logits fp32 [S, vocab], S = len(rows). Of equal logits the lowest id wins.

    The order of what changes logits is that of `SamplingParams`; log-probabilities are those of the logits given.
    """
    if all(row.params.temperature == 0.0 and not row.changes for row in rows):
        tokens = logits.argmax(axis=1).tolist()
    else:
        with np.errstate(over="ignore"):  # forbidden logits over a small temperature
            tokens = [_choose(one, row) for one, row in zip(logits, rows, strict=True)]
    return [
        describe(one, token, row.params.logprobs)
        for one, token, row in zip(logits, tokens, rows, strict=True)
    ]


def _choose(logits: Row, row: RowState) -> int:
    changed = row.changed(logits)
    if row.params.temperature == 0.0:
        token = int(changed.argmax())
    else:
        token = draw(changed, row.params, uniform(row.seed, row.completion, row.index))
    return token if row.structure is None else row.structure.settle(token)


class Sampler:
    """Samples the sequences of an engine, and keeps for each what its penalties and counters need.

    `seed` is for requests without one of their own: those draw by the number of their sequence. `tokenizer` is asked
    for once somebody wants a structured answer; without it there are none.
    """

    def __init__(
        self,
        vocab_size: int,
        ends: Collection[int],
        seed: int,
        tokenizer: Callable[[], Tokenizer] | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._ends = frozenset(ends)
        self._seed = seed
        self._rows: dict[SeqId, RowState] = {}
        self._structures = Structures(tokenizer, vocab_size, ends)

    def begin(self) -> None:
        """Read now what the first structured answer would have to wait for."""
        self._structures.begin()

    def expect(self, request: Request) -> None:
        """Hear of a request that will be sampled. Raises RequestError for what this engine cannot follow."""
        if request.params.structure is not None:
            self._structures.expect(request.params.structure)

    def broken(self, seqs: Iterable[SeqId]) -> list[SeqId]:
        """Return those whose grammar cannot be followed any further."""
        states = ((seq, self._rows[seq].structure) for seq in seqs if seq in self._rows)
        return [seq for seq, structure in states if structure is not None and structure.problem]

    def close(self) -> None:
        """End what works in the background; idempotent."""
        self._structures.close()

    def sample(self, logits: NDArray[np.float32], sequences: Sequence[TokenSequence]) -> list[Choice]:
        """Choose a token for each sequence: logits fp32 [len(sequences), vocab]. Asking again gives the same."""
        return sample(logits, [self._row(sequence) for sequence in sequences])

    def forget(self, seqs: Iterable[SeqId]) -> None:
        """Drop what is kept for sequences that ended, if anything."""
        for seq in seqs:
            self._rows.pop(seq, None)

    def _row(self, sequence: TokenSequence) -> RowState:
        """Return a sequence's state, brought up to its last token."""
        row = self._rows.get(sequence.seq)
        if row is None:
            row = self._rows[sequence.seq] = self._begin(sequence)
        for token in sequence.tokens[sequence.prompt_tokens + row.index :]:
            row.enter(token)
        return row

    def _begin(self, sequence: TokenSequence) -> RowState:
        params = sequence.request.params
        wanted = params.structure
        structure = None if wanted is None else self._structures.of(wanted, sequence.max_new_tokens)
        return RowState(
            params,
            params.seed if params.seed is not None else (self._seed << 32) + sequence.seq,
            vocab_size=self._vocab_size,
            completion=sequence.index,
            prompt=sequence.request.prompt_token_ids,
            ends=self._ends,
            structure=structure,
        )
