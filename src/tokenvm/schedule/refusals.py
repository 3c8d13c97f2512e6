"""Requests that can never run, and what to do about each."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from tokenvm.errors import RequestError
from tokenvm.schedule.limits import Limits
from tokenvm.schedule.request import Request


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_unicode(text: str) -> bool:
    """Whether a text has whole characters only."""
    return text.isascii() or not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)


def refuse_impossible(request: Request, limits: Limits) -> None:
    """Raise RequestError for a request whose fields no engine, or none under these limits, could serve."""
    _refuse_prompt(request.prompt_token_ids, limits)
    request.params.refuse_unknown(limits.vocab_size)
    if not _is_whole(request.priority):
        raise RequestError(
            f"priority={request.priority!r} is not possible: give a whole number, lower to run first"
        )
    for name in ("request_class", "cache_salt"):
        value = getattr(request, name)
        if not isinstance(value, str) or not _is_unicode(value):
            raise RequestError(f'{name}={value!r} is not possible: give a text, "" for none')


def _refuse_prompt(ids: tuple[int, ...], limits: Limits) -> None:
    if not ids:
        raise RequestError("the prompt is empty: give at least one token")
    for token in ids:
        if not _is_whole(token) or not 0 <= token < limits.vocab_size:
            raise RequestError(
                f"token id {token!r} is not in the vocabulary: ids are whole numbers from 0 to "
                f"{limits.vocab_size - 1}"
            )
    refuse_long_prompt(len(ids), limits.max_model_len)


def refuse_long_prompt(tokens: int, max_model_len: int) -> None:
    """Raise RequestError for a prompt that leaves no room for a token of an answer."""
    if tokens >= max_model_len:
        raise RequestError(
            f"the prompt has {tokens} tokens and the model allows {max_model_len} with at least one "
            f"to answer: shorten it to {max_model_len - 1} tokens"
        )


def refuse_oversized(pages: int, limits: Limits) -> None:
    """Raise RequestError for a sequence that may need more pages than all tiers hold."""
    most = limits.most_pages(sequences=1)
    if pages > most:
        raise RequestError(
            f"this request needs {pages} pages of {limits.block_tokens} tokens and all tiers together hold "
            f"{most}: raise nvme_limit, host_memory or kv_limit, or lower max_tokens"
        )
