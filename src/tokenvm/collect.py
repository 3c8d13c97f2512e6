"""From events to outputs: text as it grows, stop strings, log-probabilities, times."""

from __future__ import annotations

from collections.abc import Mapping

from tokenvm.engine.sampler import Choice
from tokenvm.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, StreamChunk
from tokenvm.schedule.plan import Event, TokenEvent
from tokenvm.schedule.request import Request
from tokenvm.tokenizer import IncrementalDetokenizer, Tokenizer
from tokenvm.vocab import SeqId


class Collector:
    """Gathers one request's output. `output.text` never holds a stop string."""

    def __init__(self, request: Request, prompt: str | None, tokenizer: Tokenizer) -> None:
        self.output = RequestOutput(
            request.request_id, prompt, list(request.prompt_token_ids), [CompletionOutput(index=0)]
        )
        self._request = request
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer, request.params.skip_special_tokens)
        self._first_s = 0.0
        self._text = ""  # everything detokenised, stop strings included
        self._given = 0  # characters of output.text that were streamed
        self._chunks: list[StreamChunk] = []
        if request.params.logprobs is not None:
            self._completion.logprobs = []
            self._completion.cumulative_logprob = 0.0

    @property
    def _completion(self) -> CompletionOutput:
        return self.output.outputs[0]

    def hear(self, event: Event, choices: Mapping[SeqId, Choice], now_s: float) -> bool:
        """Take in an event; return whether a stop string ended the text and the sequence has to be stopped."""
        if isinstance(event, TokenEvent):
            return self._token(event, choices[event.seq], now_s)
        if not self.output.finished:
            self._completion.stop_reason = event.stop_token
            self._finish(event.reason, now_s)
        return False

    def drain(self) -> list[StreamChunk]:
        """Return what has come since last asked."""
        chunks, self._chunks = self._chunks, []
        return chunks

    def _token(self, event: TokenEvent, choice: Choice, now_s: float) -> bool:
        if event.index == 0:
            self._first_s = now_s
        completion = self._completion
        completion.token_ids.append(event.token)
        if completion.logprobs is not None:
            completion.logprobs.append(self._logprobs(choice))
            completion.cumulative_logprob = (completion.cumulative_logprob or 0.0) + choice.logprob
        self._text += self._detokenizer.push(event.token)
        stopped = self._find_stop()
        completion.text = self._text if stopped is None else self._text[: stopped[0]]
        if stopped is not None:
            completion.stop_reason = stopped[1]
            self._finish("stop", now_s)
        else:
            self._give(event.token, None)
        return stopped is not None

    def _finish(self, reason: str, now_s: float) -> None:
        completion = self._completion
        if completion.stop_reason is None or isinstance(completion.stop_reason, int):
            self._text += self._detokenizer.finish()
            completion.text = self._text
        completion.finish_reason = reason
        self.output.finished = True
        started_s = self._request.arrival_s
        self.output.metrics = RequestMetrics(self._first_s - started_s, now_s - started_s)
        self._give(completion.token_ids[-1] if completion.token_ids else 0, reason)

    def _give(self, token: int, reason: str | None) -> None:
        """Stream what cannot become part of a stop string any more."""
        text = self._completion.text
        safe = len(text) if reason else len(text) - self._held_back(text)
        fresh = text[self._given : safe]
        if reason or fresh:
            self._chunks.append(StreamChunk(fresh, token, reason, self.output))
            self._given = max(self._given, safe)

    def _held_back(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        ends = (
            size
            for stop in self._request.params.stop_strings
            for size in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:size])
        )
        return max(ends, default=0)

    def _find_stop(self) -> tuple[int, str] | None:
        """Return where the first stop string begins, and which it is."""
        found = [
            (at, stop) for stop in self._request.params.stop_strings if (at := self._text.find(stop)) >= 0
        ]
        return min(found, default=None)

    def _logprobs(self, choice: Choice) -> dict[int, Logprob]:
        ranked = {token: (value, rank) for rank, (token, value) in enumerate(choice.best, start=1)}
        ranked.setdefault(choice.token, (choice.logprob, choice.rank))
        return {
            token: Logprob(value, rank, self._tokenizer.token_text(token))
            for token, (value, rank) in ranked.items()
        }
