"""What the scheduler decided for one step, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from tokenvm.vocab import SeqId


@dataclass(
    slots=True, unsafe_hash=True
)  # never written to; frozen, it would take three times as long to make
class Span:
    """Tokens [start, start + count) of one sequence run in this step; `samples` if the last one yields a token.

    `scores`: the logits of all its rows are wanted, to tell how likely the prompt is.
    """

    seq: SeqId
    start: int
    count: int
    samples: bool
    scores: bool = False

    @property
    def end(self) -> int:
        """One past the last token."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. `spills`: running sequences may need more pages than the device has, so sealed ones are written.

    Before the spans: `pauses` leave the device with all their pages, `resumes` come back to it, and `begins` are
    sequences that run for the first time, from the end of the prefix that was found for them.
    """

    spans: tuple[Span, ...]
    spills: bool = False
    begins: tuple[SeqId, ...] = ()
    pauses: tuple[SeqId, ...] = ()
    resumes: tuple[SeqId, ...] = ()

    @property
    def tokens(self) -> int:
        """Rows of the forward pass."""
        return sum(span.count for span in self.spans)

    @property
    def sampled(self) -> tuple[SeqId, ...]:
        """The sequences that get a token, in the order of their logits."""
        return tuple(span.seq for span in self.spans if span.samples)

    @property
    def decodes(self) -> bool:
        """Whether every sequence runs exactly one token."""
        return all(span.count == 1 and span.samples for span in self.spans)


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A sequence produced its `index`-th token."""

    request_id: str
    seq: SeqId
    token: int
    index: int


@dataclass(frozen=True, slots=True)
class FinishedEvent:
    """A sequence ended: "stop" (with the token that stopped it, if one did), "length" or "abort"."""

    request_id: str
    seq: SeqId
    reason: str
    stop_token: int | None = None


Event = TokenEvent | FinishedEvent
