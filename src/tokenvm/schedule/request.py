"""What a user asked for, and the sequences that are made of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.vocab import SeqId


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it.

    A lower `priority` runs first; among equals, who came first. Requests of one `request_class` are expected to answer
    at about the same part of what they may. Only requests with the same `cache_salt` share pages.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    arrival_s: float = 0.0
    priority: int = 0
    request_class: str = ""
    cache_salt: str = ""


class Status(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One stream of tokens, the `index`-th of its request. The KV of its first `computed` tokens is committed.

    Invariant: computed <= len(tokens). `most_pages`: what it may come to own. `begun`: it has run, or its pages were
    filled from elsewhere. `oversize`: alone it takes more than the device, so it streams. `found`: the leading pages
    that existed when they were last asked for. `path`: the names of the prompt's pages, once they are needed.
    """

    seq: SeqId
    request: Request
    max_new_tokens: int
    index: int = 0
    most_pages: int = 0
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    status: Status = Status.WAITING
    begun: bool = False
    oversize: bool = False
    found: int = 0
    path: tuple[int, ...] = ()
    prompt_tokens: int = 0

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_token_ids)
        self.prompt_tokens = len(self.tokens)

    def set_back(self) -> None:
        """Forget what was computed of it; its tokens stay."""
        self.computed = self.found = 0
        self.begun = self.oversize = False
        self.status = Status.WAITING

    @property
    def rank(self) -> tuple[int, SeqId]:
        """Who comes first: the lower."""
        return self.request.priority, self.seq

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

    @property
    def scored(self) -> bool:
        """Whether the logits of all its prompt are wanted: of a request's sequences, only the first computes them."""
        return self.index == 0 and self.request.params.prompt_logprobs is not None
