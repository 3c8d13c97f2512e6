"""One request between its submission and its end, as the front process sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tokenvm.collect import Collector
from tokenvm.engine.sampling.choice import Choice
from tokenvm.engine.sampling.scoring import Scores
from tokenvm.outputs import CompletionOutput, RequestOutput
from tokenvm.schedule.plan import Event, FinishedEvent
from tokenvm.vocab import SeqId


class InFlight:
    """Gathers what comes for one request and wakes who waits for it. Used from one event loop.

    Who waits for its `end` alone is not woken before, if `collector` streams nothing.
    """

    def __init__(self, name: str, collector: Collector) -> None:
        self.name = name
        self._collector = collector
        self._news = asyncio.Event()
        self._error: Exception | None = None
        self._texts = [""] * len(
            collector.output.outputs
        )  # that cannot become part of a stop string any more
        self._given = [(0, 0)] * len(self._texts)  # characters and tokens that `delta` has returned

    @property
    def request_id(self) -> str:
        """What the user calls it."""
        return self._collector.output.request_id

    @property
    def finished(self) -> bool:
        """Whether nothing more comes."""
        return self._collector.output.finished or self._error is not None

    @property
    def seqs(self) -> tuple[SeqId, ...]:
        """Its sequences, once the engine has accepted it."""
        return self._collector.seqs

    def name_sequences(self, seqs: Sequence[SeqId]) -> None:
        """Learn the numbers of its sequences, in order."""
        self._collector.name(seqs)

    def begin(self, seq: SeqId, cached_tokens: int, now_s: float) -> None:
        """Hear that a sequence ran for the first time, so much of its prompt cached."""
        self._collector.begin(seq, cached_tokens, now_s)

    def score(self, scores: Scores) -> None:
        """Take in how likely some of the prompt's tokens were."""
        self._collector.score(scores)

    def hear(self, event: Event, choices: Mapping[SeqId, Choice], now_s: float) -> bool:
        """Take in an event; return whether the sequence has to be stopped because of a stop string."""
        if self.finished:
            return False
        stops = self._collector.hear(event, choices, now_s)
        if self.finished or self._collector.streams:
            self._news.set()
        return stops

    def _drain(self) -> None:
        for chunk in self._collector.drain():
            self._texts[chunk.index] += chunk.text

    def abort(self, now_s: float) -> None:
        """End it before the engine has heard of it."""
        nameless = [SeqId(-1 - index) for index in range(len(self._texts))]
        self._collector.name(nameless)
        for seq in nameless:
            self.hear(FinishedEvent(self.request_id, seq, "abort"), {}, now_s)

    def fail(self, error: Exception) -> None:
        """End it with an error, unless it has ended."""
        if not self.finished:
            self._error = error
            self._news.set()

    async def wait(self) -> None:
        """Wait for news. Raises the error that ended the request."""
        await self._news.wait()
        self._news.clear()
        if self._error is not None:
            raise self._error

    async def end(self) -> RequestOutput:
        """Wait for the end and return all of it. Raises the error that ended the request."""
        await self.wait()
        return self._collector.output

    def so_far(self) -> RequestOutput:
        """Return a copy of all that has come; its text never takes back what it said."""
        self._drain()
        return self._output([(0, 0)] * len(self._texts))

    def delta(self) -> RequestOutput:
        """Return what has come since the last call."""
        self._drain()
        given = self._given
        outputs = self._collector.output.outputs
        self._given = [
            (len(text), len(one.token_ids)) for text, one in zip(self._texts, outputs, strict=True)
        ]
        return self._output(given)

    def _output(self, given: list[tuple[int, int]]) -> RequestOutput:
        output = self._collector.output
        parts = zip(output.outputs, self._texts, given, strict=True)
        return replace(output, outputs=[_after(one, text, *begin) for one, text, begin in parts])


def _after(completion: CompletionOutput, text: str, characters: int, tokens: int) -> CompletionOutput:
    logprobs = None if completion.logprobs is None else completion.logprobs[tokens:]
    return replace(
        completion, text=text[characters:], token_ids=completion.token_ids[tokens:], logprobs=logprobs
    )
