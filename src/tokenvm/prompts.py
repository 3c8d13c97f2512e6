"""What a user may give as a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenvm.errors import RequestError
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
