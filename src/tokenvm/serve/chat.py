"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tokenvm.outputs import CompletionOutput, RequestOutput
from tokenvm.serve.answers import Answer, News, events
from tokenvm.serve.asking import asked_of, cut_to_last, ids_of_talk, params_of
from tokenvm.serve.call_text import CallText
from tokenvm.serve.calling import (
    Calling,
    calling_of,
    deltas,
    message_of,
    params_of_calls,
    reason_of,
)
from tokenvm.serve.documented import DOCUMENTED
from tokenvm.serve.generation import Asked, complete
from tokenvm.serve.logprobs import chat_logprobs, prompt_logprobs
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.schema_text import ChatBody
from tokenvm.serve.state import ServeState, state_of
from tokenvm.serve.usage import Usage
from tokenvm.serve.wire import EventStream, Json, while_connected


def router() -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", summary="Answer a conversation", responses={**DOCUMENTED})
    async def create_chat_completion(body: ChatBody, request: Request) -> Response:
        state = state_of(request)
        asked, calling = await ask(body, state)
        answer = Answer.to(request, body, "chatcmpl")
        if body.stream:
            choices = ChatChoices(body, answer, calling)
            chunks = events(state, body, [asked], answer.head("chat.completion.chunk"), choices)
            return EventStream(chunks, state.settings.request_timeout_s)
        (output,) = await while_connected(request.receive, complete(state, [asked]))
        return Json(told(body, output, answer, calling))

    return routes


async def ask(body: ChatBody, state: ServeState) -> tuple[Asked, Calling]:
    """Return what the engine is asked for a conversation, and how calls stand in answers.

    Raises Refusal or RequestError.
    """
    state.refuse_model(body.model)
    tokenizer = state.keeper.llm.get_tokenizer()
    calling = calling_of(body, tokenizer)
    more = params_of_calls(body, calling)
    params = params_of(body, state, max_tokens=_max_tokens(body), logprobs=_logprobs(body), **more)
    ids = await ids_of_talk(tokenizer, body)
    return asked_of(body, cut_to_last(ids, body, state), params), calling


def told(body: ChatBody, output: RequestOutput, answer: Answer, calling: Calling) -> dict[str, Any]:
    """Return the whole answer to a conversation."""
    whole = {
        **answer.head("chat.completion"),
        "choices": [_choice(body, one, answer, calling) for one in output.outputs],
        "usage": Usage.of([output]).as_dict(),
    }
    if output.prompt_logprobs is not None:
        whole["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
    if body.return_token_ids:
        whole["prompt_token_ids"] = output.prompt_token_ids
    return whole


class ChatChoices:
    """The choices of a stream's chunks: first who speaks, then what is new."""

    def __init__(self, body: ChatBody, answer: Answer, calling: Calling) -> None:
        self._body = body
        self._answer = answer
        self._news = News(bool(body.logprobs or body.return_token_ids))
        self._calling = calling
        self._heard: dict[int, CallText] = {}
        self._begun = False

    def __call__(self, _index: int, output: RequestOutput) -> list[dict[str, Any]]:
        """Return the choices that tell what is new."""
        choices = [] if self._begun else [_opening(one.index) for one in output.outputs]
        self._begun = True
        for one in output.outputs:
            if self._news.tells(one.index, one):
                choices += self._told(one)
        return choices

    def _told(self, one: CompletionOutput) -> list[dict[str, Any]]:
        rest = {"index": one.index, **_rest(self._body, one, self._answer)}
        heard = self._heard.get(one.index) or self._calling.listen()
        if heard is None:
            return [{"delta": {"content": one.text} if one.text else {}, **rest}]
        self._heard[one.index] = heard
        pieces = heard.push(one.text) + (heard.finish() if one.finish_reason is not None else [])
        found = deltas(pieces) or [{}]
        if found == [{}] and one.finish_reason is None and not (one.logprobs or self._body.return_token_ids):
            return []
        rest["finish_reason"] = reason_of(one.finish_reason, heard.calls)
        empty = {"index": one.index, "logprobs": None, "finish_reason": None}
        return [{"delta": delta, **empty} for delta in found[:-1]] + [{"delta": found[-1], **rest}]


def _opening(index: int) -> dict[str, Any]:
    return {
        "index": index,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }


def _choice(body: ChatBody, one: CompletionOutput, answer: Answer, calling: Calling) -> dict[str, Any]:
    heard, rest = calling.listen(), _rest(body, one, answer)
    if heard is None:
        message = {"role": "assistant", "content": one.text, "refusal": None}
        return {"index": one.index, "message": message, **rest}
    message = message_of(heard.push(one.text) + heard.finish())
    rest["finish_reason"] = reason_of(one.finish_reason, heard.calls)
    return {"index": one.index, "message": message, **rest}


def _rest(body: ChatBody, one: CompletionOutput, answer: Answer) -> dict[str, Any]:
    """Return what a choice says beside its text."""
    rest: dict[str, Any] = {
        "logprobs": None,
        "finish_reason": one.finish_reason,
        "stop_reason": one.stop_reason,
    }
    if one.logprobs is not None:
        top = body.top_logprobs or 0
        rest["logprobs"] = chat_logprobs(one.token_ids, one.logprobs, top, answer.token_name)
    if body.return_token_ids:
        rest["token_ids"] = one.token_ids
    return rest


def _max_tokens(body: ChatBody) -> int | None:
    """Return the bound of either name; without one, as many as the model allows."""
    if body.max_tokens == 0:
        raise Refusal("max_tokens=0 asks for nothing: send 1 or more, or leave it out", param="max_tokens")
    both = body.max_tokens, body.max_completion_tokens
    if None not in both and both[0] != both[1]:
        text = "max_tokens and max_completion_tokens say the same thing: send one of them"
        raise Refusal(text, param="max_completion_tokens")
    return body.max_completion_tokens if body.max_tokens is None else body.max_tokens


def _logprobs(body: ChatBody) -> int | None:
    if body.top_logprobs and not body.logprobs:
        text = "top_logprobs comes beside logprobs: send logprobs=true too"
        raise Refusal(text, param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None
