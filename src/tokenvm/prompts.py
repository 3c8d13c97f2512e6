"""What a user may give as a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenvm.engine.sampling.grammar import refuse_bad_structure
from tokenvm.errors import RequestError
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.tokenizer import Tokenizer

Prompt = str | Mapping[str, Any]


def read_prompt(prompt: Prompt, tokenizer: Tokenizer) -> tuple[tuple[int, ...], str | None]:
    """Turn a text or {"prompt_token_ids": [...]} into token ids and, where there is one, its text.

    Raises RequestError for anything else.
    """
    fields: Mapping[str, Any] = prompt if isinstance(prompt, Mapping) else {"prompt": prompt}
    text, ids = fields.get("prompt"), fields.get("prompt_token_ids")
    if ids is None:
        if not isinstance(text, str):
            raise RequestError('a prompt is a text or {"prompt_token_ids": [...]}')
        ids = tokenizer.encode(text)
    if not isinstance(ids, Sequence) or not all(type(token) is int for token in ids):
        raise RequestError(
            "prompt_token_ids is not a list of whole numbers: give one, as a tokenizer makes it"
        )
    return tuple(ids), text


def salt_of(prompt: Prompt, otherwise: str) -> Any:
    """Return the cache salt that a prompt names beside its text or ids, else the one given."""
    return prompt.get("cache_salt", otherwise) if isinstance(prompt, Mapping) else otherwise


def ready(given: SamplingParams | None, tokenizer: Tokenizer) -> SamplingParams:
    """Return parameters, or the defaults, as an engine takes them: bad words as tokens, and no impossible structure.

    Raises RequestError for a structure that cannot.
    """
    params = given or SamplingParams()
    refuse_bad_structure(params)
    if not params.bad_words:
        return params
    words = {*map(tuple, params.bad_words_token_ids or ()), *_spellings(params.bad_words, tokenizer)}
    return replace(params, bad_words=None, bad_words_token_ids=tuple(sorted(words)))


def _spellings(words: Sequence[str], tokenizer: Tokenizer) -> set[tuple[int, ...]]:
    """Return the tokens of each word, at the beginning of a text and behind a space."""
    written = {text for word in words for text in (word.lstrip() or word, " " + word.lstrip())}
    return {tuple(tokenizer.encode(text, add_special_tokens=False)) for text in written if text}
