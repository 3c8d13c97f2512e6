"""From bodies to what the engine is asked: sampling parameters, and prompts as token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from tokenvm.engine_process.reading import LONG_TEXT
from tokenvm.schedule.refusals import refuse_long_prompt
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.serve.generation import Asked
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.schema import SamplingBody
from tokenvm.serve.schema_text import ChatBody, TokenizeBody
from tokenvm.serve.shape import shape_of
from tokenvm.serve.state import ServeState
from tokenvm.serve.talk import talk_of
from tokenvm.tokenizer import Tokenizer

SHARED: Final = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "seed",
    "prompt_logprobs",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "allowed_token_ids",
    "bad_words",
)
"""Fields that mean in a body what they mean in SamplingParams."""


def params_of(body: SamplingBody, state: ServeState, **more: Any) -> SamplingParams:
    """Return how a body wants tokens chosen; `more` are fields that its endpoint reads in a way of its own.

    Raises RequestError or Refusal for what is not possible.
    """
    given = {name: getattr(body, name) for name in SHARED if getattr(body, name) is not None}
    if body.stop:
        given["stop"] = body.stop
    if body.logit_bias:
        given["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
    given["structured_outputs"] = shape_of(body)
    params = SamplingParams(**(given | more))
    if params.n > state.settings.max_n:
        text = f"n={params.n} is more than this server gives: ask for at most {state.settings.max_n}"
        raise Refusal(text, param="n")
    _refuse_many_logprobs(body, params, state.settings.max_logprobs)
    return params


def _refuse_many_logprobs(body: SamplingBody, params: SamplingParams, most: int) -> None:
    """Refuse what would make thousands of entries for each token: -1 asks for the whole vocabulary."""
    said = "top_logprobs" if isinstance(body, ChatBody) else "logprobs"
    for name, count in ((said, params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        if count is not None and most >= 0 and not 0 <= count <= most:
            text = f"{name}={count} is more than this server gives: ask for at most {most}, or raise --max-logprobs"
            raise Refusal(text, param=name)


def asked_of(body: SamplingBody, ids: list[int], params: SamplingParams) -> Asked:
    """Return what the engine is asked for one prompt."""
    return Asked({"prompt_token_ids": ids}, params, body.priority or 0, body.cache_salt or "")


async def ids_of_text(tokenizer: Tokenizer, text: str, add_special_tokens: bool | None) -> list[int]:
    """Return a text's token ids; a long one is read on another thread. Special tokens are added unless refused."""
    special = add_special_tokens is not False
    if len(text) >= LONG_TEXT:
        return await asyncio.to_thread(tokenizer.encode, text, special)
    return tokenizer.encode(text, special)


async def ids_of_talk(tokenizer: Tokenizer, body: ChatBody | TokenizeBody, **names: Any) -> list[int]:
    """Return the token ids of a conversation as the model's template has it; `names` are further ones for that."""
    messages, tools = talk_of(body, tokenizer)
    more = {**(body.chat_template_kwargs or {}), **tools, **names}
    if sum(len(message["content"]) for message in messages) >= LONG_TEXT:
        text = await asyncio.to_thread(_rendered, tokenizer, messages, body, more)
    else:
        text = _rendered(tokenizer, messages, body, more)
    return await ids_of_text(tokenizer, text, bool(body.add_special_tokens))


def cut_to_last(ids: list[int], body: SamplingBody, state: ServeState) -> list[int]:
    """Keep as many of a prompt's last tokens as `truncate_prompt_tokens` says; -1 is as many as the model takes.

    Raises RequestError where more are left than the model takes: so long a list need not be sent to the engine.
    """
    most: int = state.keeper.llm.plan["max_model_len"]
    count = body.truncate_prompt_tokens
    if count == 0:
        raise Refusal(
            "truncate_prompt_tokens=0 leaves nothing: send -1, or a number from 1",
            param="truncate_prompt_tokens",
        )
    kept = ids if count is None else ids[-(most - 1 if count == -1 else count) :]
    refuse_long_prompt(len(kept), most)
    return kept


def _rendered(
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, Any]],
    body: ChatBody | TokenizeBody,
    more: dict[str, Any],
) -> str:
    unfinished = bool(body.continue_final_message)
    if unfinished and body.add_generation_prompt:
        text = "continue_final_message and add_generation_prompt exclude each other: send one of them"
        raise Refusal(text, param="continue_final_message")
    opens = not unfinished and body.add_generation_prompt is not False
    text = tokenizer.apply_chat_template(messages, opens, tokenize=False, more=more)
    return _without_end(text, messages[-1]["content"]) if unfinished else text


def _without_end(text: str, last: str) -> str:
    """Cut what a template puts behind the last message, so that the model goes on with it."""
    last = last.strip()
    place = text.rfind(last)
    if not last or place < 0:
        message = "continue_final_message needs a last message whose text the template shows: send some"
        raise Refusal(message, param="continue_final_message")
    return text[: place + len(last)]
