"""What the server counts: requests, tokens and times, as plain numbers that an exporter reads."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from tokenvm.outputs import RequestOutput
from tokenvm.schedule.sampling_params import SamplingParams

RECENT: Final = 1000
"""Quantiles are those of so many requests that ended last."""

Heard = Callable[[RequestOutput, SamplingParams, int], None]
Gap = Callable[[float], Any]


class Meter:
    """Counters since the server's start. One event loop writes, anybody may read a number."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.produced_tokens = 0
        self.finished: Counter[str] = Counter()
        self.answers: Counter[tuple[str, str, str]] = Counter()  # (method, path, status class) → answers
        self.latencies_s: deque[float] = deque(maxlen=RECENT)
        self.requests = 0
        self.latency_sum_s = 0.0
        self.hear: list[Heard] = []
        self.hear_gap: list[Gap] = []

    def end(self, output: RequestOutput, params: SamplingParams, produced: int) -> None:
        """Enter a request that has finished, with so many tokens produced by all its completions."""
        assert output.metrics is not None, "it has finished"
        self.prompt_tokens += len(output.prompt_token_ids)
        self.cached_tokens += output.metrics.cached_tokens
        self.produced_tokens += produced
        self.finished.update(one.finish_reason or "abort" for one in output.outputs)
        self.requests += 1
        self.latency_sum_s += output.metrics.latency_s
        self.latencies_s.append(output.metrics.latency_s)
        for heard in self.hear:
            heard(output, params, produced)

    def gap(self, seconds: float) -> None:
        """Enter the time between two tokens of a stream, as its reader saw them."""
        for heard in self.hear_gap:
            heard(seconds)

    def answer(self, method: str, path: str, status: int) -> None:
        """Enter an HTTP answer; `path` is a route's, not what the client typed."""
        self.answers[method, path, f"{status // 100}xx"] += 1

    def latency_s(self, quantile: float) -> float:
        """Return a quantile of recent requests' times from arrival to end, 0 without any."""
        ordered = sorted(self.latencies_s)
        return ordered[min(int(quantile * len(ordered)), len(ordered) - 1)] if ordered else 0.0
