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
    """Times of one request in seconds, and how many prompt tokens were not computed because they were cached."""

    ttft_s: float
    latency_s: float
    cached_tokens: int = 0


@dataclass(slots=True)
class CompletionOutput:
    """One stream of produced tokens."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True)
class RequestOutput:
    """A request with what it produced; `metrics` is there once it has finished."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    metrics: RequestMetrics | None = None


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """The text one more token adds and, at the end, why it ended; `output` is the request's output so far."""

    text: str
    token_id: int
    finish_reason: str | None
    output: RequestOutput
