"""What a user asked for, and the sequence that is made of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.vocab import SeqId


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    arrival_s: float = 0.0


class Status(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True)
class Sequence:
    """One stream of tokens. Invariant: computed <= len(tokens); the KV of `computed` tokens is committed."""

    seq: SeqId
    request: Request
    max_new_tokens: int
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    status: Status = Status.WAITING

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_token_ids)

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def new_tokens(self) -> int:
        """How many tokens have been produced."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def pending(self) -> int:
        """How many known tokens still lack their KV; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether all but the last produced token have their KV; a lone prompt token is still prefill."""
        return self.pending == 1 and self.new_tokens > 0
