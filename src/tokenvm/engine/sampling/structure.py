"""Which tokens may come next in answers that must look like something: one matcher for each sequence.

A grammar is made ready on another thread while the prompt is read. Tokens allowed are a function of the grammar and of
the answer's own tokens, so a structured answer is the same alone, in any batch and after a pause.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from tokenvm.engine.sampling.grammar import grammar_of
from tokenvm.engine.sampling.way_out import Bits, Closers
from tokenvm.errors import RequestError
from tokenvm.schedule.structured_outputs import StructuredOutputsParams
from tokenvm.tokenizer import Tokenizer

KEPT: Final = 64
"""So many grammars stay ready for the next request that asks for the same."""

NEAR: Final = 64
"""With fewer tokens than this beyond a way out left, every token is looked at before it is taken."""


@dataclass(frozen=True)
class _Vocabulary:
    tokenizer: LLTokenizer
    closers: Closers
    words: int


class Structure:
    """One answer's place in its grammar. Used by the thread that samples."""

    def __init__(self, matcher: LLMatcher, vocabulary: _Vocabulary, most_tokens: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._left = most_tokens
        self._way = self._way_out(matcher, most_tokens)
        self._ahead: tuple[int, list[int] | None] = (
            -1,
            None,
        )  # a token that was looked at, and the way out behind it
        self._near = (len(self._way) if self._way else 0) + NEAR

    @property
    def problem(self) -> str:
        """Why the grammar cannot be followed further; empty if it can."""
        return " ".join(self._matcher.get_error().split())

    def allowed(self, size: int) -> Bits:
        """Return which of `size` tokens may come next, bool [size]: never none, while there is no problem."""
        bits = _allowed(self._matcher)
        if bits.size < size:
            bits = np.concatenate([bits, np.zeros(size - bits.size, dtype=np.bool_)])
        return bits[:size]

    def settle(self, token: int) -> int:
        """Return the token to take where `token` was chosen: another one if behind it no room is left for the end.

        So a structured answer is not cut off by max_tokens, if a way to its end was known in time. Far from that limit
        nothing is looked at.
        """
        if self._left > self._near or token in self._vocabulary.closers.ends:
            return token
        if self._way and self._way[0] == token:  # the rest of the way that is known is the way behind it
            return token
        ahead = self._matcher.deep_copy()
        way = self._way_out(ahead, self._left - 1) if ahead.consume_token(token) else None
        self._ahead = token, way
        if way is None and self._way:
            return self._way[0]
        return token

    def enter(self, token: int) -> None:
        """Go on behind a token that was taken."""
        self._left -= 1
        if self._ahead[0] == token:
            self._way = self._ahead[1]
        else:
            self._way = self._way[1:] if self._way and self._way[0] == token else None
        self._ahead = -1, None
        self._matcher.consume_token(token)

    def _way_out(self, matcher: LLMatcher, most: int) -> list[int] | None:
        return self._vocabulary.closers.way_out(matcher.deep_copy(), _allowed, most)


class Structures:
    """Makes grammars ready for the sequences of an engine. `tokenizer` is asked for when the first one comes."""

    def __init__(
        self, tokenizer: Callable[[], Tokenizer] | None, vocab_size: int, ends: Collection[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ends = sorted(ends)
        self._thread: ThreadPoolExecutor | None = None
        self._vocabulary: Future[_Vocabulary] | None = None
        self._ready: dict[StructuredOutputsParams, Future[LLMatcher]] = {}

    def begin(self) -> None:
        """Start to read the vocabulary, unless that was done: it takes a second for 50,000 tokens."""
        if self._vocabulary is None and self._tokenizer is not None and self._ends:
            self._thread = ThreadPoolExecutor(1, "tokenvm-grammar")
            self._vocabulary = self._thread.submit(self._read, self._tokenizer)

    def expect(self, wanted: StructuredOutputsParams) -> None:
        """Start to make a grammar ready; waits for the vocabulary. Raises RequestError if none can be followed."""
        if self._tokenizer is None or not self._ends:
            lacks = "has no tokenizer" if self._tokenizer is None else "names no end token"
            raise RequestError(f"SamplingParams.structured_outputs: this model {lacks}: leave them out")
        self.begin()
        assert self._thread is not None
        assert self._vocabulary is not None
        if problem := self._vocabulary.exception():
            raise RequestError(
                f"SamplingParams.structured_outputs: this model's tokenizer is not made for them ({problem})"
            )
        while len(self._ready) >= KEPT:
            del self._ready[next(iter(self._ready))]
        made = self._ready.pop(wanted, None) or self._thread.submit(self._make, wanted)
        self._ready[wanted] = made

    def of(self, wanted: StructuredOutputsParams, most_tokens: int) -> Structure:
        """Return the state of an answer of at most `most_tokens` at its beginning; waits for its grammar."""
        if wanted not in self._ready:
            self.expect(wanted)
        assert self._vocabulary is not None
        return Structure(self._ready[wanted].result().deep_copy(), self._vocabulary.result(), most_tokens)

    def close(self) -> None:
        """End the thread; idempotent."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def _read(self, tokenizer: Callable[[], Tokenizer]) -> _Vocabulary:
        spoken = tokenizer()
        words = max(self._vocab_size, spoken.vocab_size)
        made = LLTokenizer(spoken.as_json(), n_vocab=words, eos_token=self._ends)
        texts = (spoken.token_text(token) for token in range(words))
        return _Vocabulary(made, Closers(texts, self._ends), words)

    def _make(self, wanted: StructuredOutputsParams) -> LLMatcher:
        assert self._vocabulary is not None
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(
            self._vocabulary.result().tokenizer, grammar_of(wanted), log_level=0, limits=limits
        )
        if not matcher.is_error():
            matcher.deep_copy().compute_bitmask()  # the first one is slow
        return matcher


def _allowed(matcher: LLMatcher) -> Bits:
    """Return a matcher's bits as bool [words rounded up to 32]."""
    packed = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    return np.unpackbits(packed, bitorder="little").view(np.bool_)
