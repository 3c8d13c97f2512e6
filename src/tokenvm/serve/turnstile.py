"""How many sequences are asked for at once, and the answer to those beyond the bound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tokenvm.serve.refusal import Refusal

RETRY_S = 2
"""When to ask again where the queue is full: some sequences will have ended by then."""


class Turnstile:
    """Counts sequences between arrival and answer; at most `most` are inside. One event loop uses it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.inside = 0

    @contextmanager
    def enter(self, count: int) -> Iterator[None]:
        """Let so many sequences in until the end of the block. Raises Refusal where there is no room for them."""
        if self.inside and self.inside + count > self._most:
            raise Refusal(
                f"{self.inside} sequences run or wait and {self._most} may: ask again in {RETRY_S} s",
                status=429,
                code="queue_full",
                headers={"Retry-After": str(RETRY_S)},
            )
        if count > self._most:
            raise Refusal(
                f"this asks for {count} sequences at once and {self._most} may run or wait: ask for fewer"
            )
        self.inside += count
        try:
            yield
        finally:
            self.inside -= count
