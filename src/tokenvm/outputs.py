"""What a caller gets back; the names are those of vLLM's offline interface."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of one token under the model's own distribution, its rank (1 is best) and its text."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Times of one request in seconds, and how many prompt tokens were not computed because they were cached.

    All from its arrival: `queue_s` to the first step it took part in, `ttft_s` to its first token, `latency_s` to the
    end of its last sequence.
    """

    ttft_s: float
    latency_s: float
    cached_tokens: int = 0
    queue_s: float = 0.0


@dataclass(slots=True)
class CompletionOutput:
    """One stream of produced tokens. `text` is whole at the end; before, what was streamed of it so far.

    `stop_reason` is the stop string or the member of `stop_token_ids` that ended it, None for an end token.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True)
class RequestOutput:
    """A request with what it produced: `n` outputs in order. `metrics` is there once it has finished.

    `prompt_logprobs`, where asked for, has an entry for each token of the prompt, the first of them None.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    metrics: RequestMetrics | None = None
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None

    @property
    def num_cached_tokens(self) -> int | None:
        """How many prompt tokens were not computed because they were cached; None until it has finished."""
        return None if self.metrics is None else self.metrics.cached_tokens


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """The text one more token adds and, at the end, why it ended; `output` is the request's output so far.

    `index` says which of its outputs grew.
    """

    text: str
    token_id: int
    finish_reason: str | None
    output: RequestOutput
    index: int = 0
