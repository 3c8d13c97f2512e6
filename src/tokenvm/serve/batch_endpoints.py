"""One request of a batch, answered as its endpoint would."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from tokenvm.errors import EngineDeadError, TokenVMError
from tokenvm.outputs import RequestOutput
from tokenvm.serve import chat, completions, responses
from tokenvm.serve.answers import Answer
from tokenvm.serve.generation import Asked
from tokenvm.serve.refusal import Refusal, refusal_of, refusal_of_body
from tokenvm.serve.schema_responses import ResponseBody
from tokenvm.serve.schema_text import ChatBody, CompletionBody
from tokenvm.serve.state import ServeState

BEHIND: Final = 1 << 62
"""The lowest priority number of a batch's request: interactive ones, whose numbers are lower, come first."""

MAX_DEATHS: Final = 3
"""A request under which so many engines died is not tried again."""

LOG: Final = logging.getLogger("tokenvm.serve")

Told = tuple[int, dict[str, Any]]
"""An HTTP status and the body of an answer."""


async def answer(state: ServeState, endpoint: str, body: dict[str, Any]) -> Told:
    """Answer a body; what is wrong with it is an answer too."""
    try:
        return 200, await ENDPOINTS[endpoint](state, body)
    except ValidationError as error:
        refusal = refusal_of_body([{**one, "loc": ("body", *one["loc"])} for one in error.errors()])
    except Refusal as error:
        refusal = error
    except TokenVMError as error:
        refusal = refusal_of(error)
    except Exception:
        LOG.exception("a batch's request failed")
        refusal = Refusal("the server failed, and says why in its log", status=500)
    return refusal.status, refusal.as_dict()


async def _chat(state: ServeState, given: dict[str, Any]) -> dict[str, Any]:
    body = ChatBody.model_validate(given)
    _refuse_stream(body.stream)
    asked, calling = await chat.ask(body, state)
    (output,) = await _complete(state, [asked])
    return chat.told(body, output, Answer.of(state, body, "chatcmpl"), calling)


async def _completion(state: ServeState, given: dict[str, Any]) -> dict[str, Any]:
    body = CompletionBody.model_validate(given)
    _refuse_stream(body.stream)
    asked = await completions.ask(body, state)
    outputs = await _complete(state, asked)
    return completions.told(body, outputs, Answer.of(state, body, "cmpl"), state)


async def _response(state: ServeState, given: dict[str, Any]) -> dict[str, Any]:
    body = ResponseBody.model_validate(given)
    _refuse_stream(body.stream)
    reply = await responses.reply_to(body, state)
    (output,) = await _complete(state, [reply.asked])
    return reply.told(output)


def _refuse_stream(stream: bool | None) -> None:
    if stream:
        raise Refusal("stream=true is not for batches: leave it out", param="stream")


async def _complete(state: ServeState, asked: list[Asked]) -> list[RequestOutput]:
    """Answer prompts however long it takes: an engine that dies is waited for."""
    outputs = []
    for one in asked:
        outputs.append(await _complete_one(state, one))
        state.meter.end(outputs[-1], one.params, sum(len(each.token_ids) for each in outputs[-1].outputs))
    return outputs


async def _complete_one(state: ServeState, one: Asked) -> RequestOutput:
    deaths = 0
    while True:
        llm = await state.keeper.standing(math.inf)
        try:
            priority = BEHIND + min(max(one.priority, 0), BEHIND - 1)
            return await llm.complete(one.prompt, one.params, priority=priority, cache_salt=one.cache_salt)
        except EngineDeadError:
            deaths += 1
            if deaths >= MAX_DEATHS:
                raise
            await asyncio.sleep(0.1)


ENDPOINTS: Final[Mapping[str, Callable[[ServeState, dict[str, Any]], Awaitable[dict[str, Any]]]]] = (
    MappingProxyType(
        {"/v1/chat/completions": _chat, "/v1/completions": _completion, "/v1/responses": _response}
    )
)
"""Endpoint → what answers one body."""
