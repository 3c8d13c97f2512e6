"""What answers of chat and of completions have in common, whole or streamed."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request

from tokenvm import __version__
from tokenvm.outputs import CompletionOutput, RequestOutput
from tokenvm.serve.generation import Asked, stream
from tokenvm.serve.logprobs import Name, by_id
from tokenvm.serve.schema import SamplingBody
from tokenvm.serve.state import ServeState, state_of
from tokenvm.serve.usage import Usage
from tokenvm.serve.wire import DONE, data_event

FINGERPRINT: Final = f"tokenvm-{__version__}"

Choices = Callable[[int, RequestOutput], list[dict[str, Any]]]
"""Turns what is new of the i-th prompt into the choices that tell it; what is there to tell may be nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What all parts of an answer say of it, and what its tokens are called."""

    id: str
    created: int
    model: str
    token_name: Name

    @classmethod
    def to(cls, request: Request, body: SamplingBody, prefix: str) -> Answer:
        """Begin the answer to a request; its id is the client's own, where it sent one."""
        return cls.of(state_of(request), body, prefix)

    @classmethod
    def of(cls, state: ServeState, body: SamplingBody, prefix: str) -> Answer:
        """Begin the answer to a body."""
        named = by_id if body.return_tokens_as_token_ids else state.keeper.llm.get_tokenizer().token_text
        name = body.request_id or uuid.uuid4().hex
        return cls(f"{prefix}-{name}", int(time.time()), state.settings.model, named)

    def head(self, kind: str) -> dict[str, Any]:
        """Return the fields before the choices."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }


async def events(
    state: ServeState, body: SamplingBody, asked: Sequence[Asked], head: dict[str, Any], choices: Choices
) -> AsyncGenerator[bytes, None]:
    """Yield a stream's events, each as many chunks as there is news: one choice each, then the usage, then its end."""
    options = body.stream_options
    told, always = (False, False)
    if options is not None:
        told, always = bool(options.include_usage), bool(options.continuous_usage_stats)
    usage = Usage()
    async with aclosing(stream(state, asked)) as outputs:
        async for index, output in outputs:
            usage.add(index, output)
            more = {"usage": usage.as_dict() if always else None} if told else {}
            chunks = [{**head, "choices": [choice], **more} for choice in choices(index, output)]
            if chunks:
                yield b"".join(map(data_event, chunks))
    if told:
        yield data_event({**head, "choices": [], "usage": usage.as_dict()}) + DONE
    else:
        yield DONE


class News:
    """Says whether a delta is worth telling; its end is told once. `all_tokens`: also tokens that bring no text."""

    def __init__(self, all_tokens: bool) -> None:
        self._all_tokens = all_tokens
        self._ended: set[int] = set()

    def tells(self, place: int, one: CompletionOutput) -> bool:
        """Whether there is anything new about the completion at `place`."""
        if place in self._ended:
            return False
        if one.finish_reason is not None:
            self._ended.add(place)
            return True
        return bool(one.text or (self._all_tokens and one.token_ids))
