"""From events to outputs: text as it grows, stop strings, log-probabilities, times."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tokenvm.engine.sampling.choice import Choice
from tokenvm.engine.sampling.scoring import Scores
from tokenvm.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, StreamChunk
from tokenvm.schedule.plan import Event, TokenEvent
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.stop_strings import StopStrings
from tokenvm.tokenizer import IncrementalDetokenizer, Tokenizer
from tokenvm.vocab import SeqId


class Collector:
    """Gathers one request's output.

    `ends` are the model's end tokens: like `stop_token_ids`, they end a text without being part of it. With `streams`
    off, no chunks are kept.
    """

    def __init__(
        self,
        request: Request,
        prompt: str | None,
        tokenizer: Tokenizer,
        ends: Collection[int] = (),
        *,
        streams: bool = True,
    ) -> None:
        params = request.params
        silent = frozenset() if params.include_stop_str_in_output else _stop_tokens(params, ends)
        self._completions = [_Completion(index, params, tokenizer, silent) for index in range(params.n)]
        outputs = [completion.output for completion in self._completions]
        self.output = RequestOutput(request.request_id, prompt, list(request.prompt_token_ids), outputs)
        if params.prompt_logprobs is not None:
            self.output.prompt_logprobs = [None]
        self._places: dict[SeqId, int] = {}
        self._request = request
        self._tokenizer = tokenizer
        self.streams = streams
        self._chunks: list[StreamChunk] = []
        self._queue_s: float | None = None
        self._ttft_s: float | None = None
        self._cached_tokens = 0

    def name(self, seqs: Sequence[SeqId]) -> None:
        """Learn the numbers of the request's sequences, in order; must come first where there are several."""
        assert len(seqs) == len(self._completions), "one sequence for each completion"
        self._places = {seq: index for index, seq in enumerate(seqs)}

    @property
    def seqs(self) -> tuple[SeqId, ...]:
        """The request's sequences, as far as it was told."""
        return tuple(self._places)

    def begin(self, seq: SeqId, cached_tokens: int, now_s: float) -> None:
        """Hear that a sequence took part in a step for the first time, with so much of its prompt cached."""
        if self._queue_s is None:
            self._queue_s = now_s - self._request.arrival_s
        if self._index(seq) == 0:
            self._cached_tokens = cached_tokens

    def score(self, scores: Scores) -> None:
        """Take in how likely some of the prompt's tokens were; what is known already is passed over."""
        known = self.output.prompt_logprobs
        if known is not None:
            assert scores.first <= len(known), "prompts are scored from their start"
            known += [self._logprobs(choice) for choice in scores.choices[len(known) - scores.first :]]

    def hear(self, event: Event, choices: Mapping[SeqId, Choice], now_s: float) -> bool:
        """Take in an event; return whether a stop string ended the text and the sequence has to be stopped."""
        completion = self._completions[self._index(event.seq)]
        if completion.finished:
            return False
        if isinstance(event, TokenEvent):
            return self._token(completion, event, choices[event.seq], now_s)
        if event.stop_token in (self._request.params.stop_token_ids or ()):
            completion.output.stop_reason = event.stop_token
        self._finish(completion, event.reason, now_s)
        return False

    def drain(self) -> list[StreamChunk]:
        """Return what has come since last asked."""
        for completion in self._completions:
            completion.join()
        chunks, self._chunks = self._chunks, []
        return chunks

    def _index(self, seq: SeqId) -> int:
        return self._places[seq] if self._places else 0

    def _token(self, completion: _Completion, event: TokenEvent, choice: Choice, now_s: float) -> bool:
        if self._ttft_s is None:
            self._ttft_s = now_s - self._request.arrival_s
        output = completion.output
        if output.logprobs is not None:
            output.logprobs.append(self._logprobs(choice))
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + choice.logprob
        fresh = completion.push(event.token, event.index)
        if completion.stop is not None:
            output.stop_reason = completion.stop
            self._finish(completion, "stop", now_s, fresh)
        elif fresh:
            self._give(completion, fresh)
        return completion.stop is not None

    def _finish(self, completion: _Completion, reason: str, now_s: float, fresh: str = "") -> None:
        fresh += completion.finish(reason)
        if all(one.finished for one in self._completions):
            passed_s = now_s - self._request.arrival_s
            ttft_s = 0.0 if self._ttft_s is None else self._ttft_s
            queue_s = ttft_s if self._queue_s is None else self._queue_s
            self.output.metrics = RequestMetrics(ttft_s, passed_s, self._cached_tokens, queue_s)
            self.output.finished = True
        self._give(completion, fresh)

    def _give(self, completion: _Completion, fresh: str) -> None:
        if self.streams:
            output = completion.output
            token = output.token_ids[-1] if output.token_ids else 0
            self._chunks.append(StreamChunk(fresh, token, output.finish_reason, self.output, output.index))

    def _logprobs(self, choice: Choice) -> dict[int, Logprob]:
        ranked = {token: (value, rank) for rank, (token, value) in enumerate(choice.best, start=1)}
        ranked.setdefault(choice.token, (choice.logprob, choice.rank))
        return {
            token: Logprob(value, rank, self._tokenizer.token_text(token))
            for token, (value, rank) in ranked.items()
        }


class _Completion:
    """One sequence's tokens and text; `stop` is the stop string that ended it, if one did."""

    def __init__(
        self, index: int, params: SamplingParams, tokenizer: Tokenizer, silent: Collection[int]
    ) -> None:
        self.output = CompletionOutput(index)
        if params.logprobs is not None:
            self.output.logprobs = []
            self.output.cumulative_logprob = 0.0
        self._silent = silent
        self._min_tokens = params.min_tokens
        self._detokenizer = IncrementalDetokenizer(tokenizer, params.skip_special_tokens)
        self._stops = StopStrings(params.stop_strings, params.include_stop_str_in_output)
        self._pieces: list[str] = []  # of the text, behind output.text

    @property
    def finished(self) -> bool:
        """Whether nothing more comes."""
        return self.output.finish_reason is not None

    @property
    def stop(self) -> str | None:
        """The stop string that was found."""
        return self._stops.found

    def push(self, token: int, index: int) -> str:
        """Add the `index`-th token and return what it adds to the text for sure."""
        self.output.token_ids.append(token)
        if token in self._silent:
            return ""
        return self._add(self._stops.push(self._detokenizer.push(token), counts=index >= self._min_tokens))

    def finish(self, reason: str) -> str:
        """Say that nothing more comes and return the rest of the text."""
        self.output.finish_reason = reason
        rest = "" if self.stop is not None else self._add(self._stops.rest() + self._detokenizer.finish())
        self.join()
        return rest

    def join(self) -> None:
        """Bring output.text up to date: not with every token, for that would copy all of it."""
        if self._pieces:
            self.output.text += "".join(self._pieces)
            self._pieces.clear()

    def _add(self, text: str) -> str:
        if text:
            self._pieces.append(text)
        return text


def _stop_tokens(params: SamplingParams, ends: Collection[int]) -> frozenset[int]:
    return frozenset(params.stop_token_ids or ()) | (frozenset() if params.ignore_eos else frozenset(ends))
