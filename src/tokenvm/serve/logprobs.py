"""Log-probabilities in the shapes of chat, of completions and of vLLM's prompt_logprobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tokenvm.outputs import Logprob

FLOOR: Final = -9999.0
"""What stands for less: JSON has no minus infinity."""

Best = Mapping[int, Logprob]
Name = Callable[[int], str]
"""What a token is called: its text, or `token_id:7`."""


def by_id(token: int) -> str:
    """Call a token by its id, as vLLM's return_tokens_as_token_ids does."""
    return f"token_id:{token}"


def chat_logprobs(tokens: Sequence[int], best: Sequence[Best], top: int, name: Name) -> dict[str, Any]:
    """Return the `logprobs` of a chat choice, `top` of the best tokens beside each one."""
    entries = [_entry(token, each, top, name) for token, each in zip(tokens, best, strict=True)]
    return {"content": entries, "refusal": None}


def completion_logprobs(
    tokens: Sequence[int], best: Sequence[Best | None], top: int, offset: int, name: Name
) -> dict[str, Any]:
    """Return the `logprobs` of a completion whose first token begins at character `offset`.

    A prompt's first token has None, for nothing stands before it. With `top` 0 there are no top_logprobs.
    """
    pairs = list(zip(tokens, best, strict=True))
    texts = [name(token) for token in tokens]
    offsets = [offset]
    for text in texts[:-1]:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [None if each is None else _bounded(each[token]) for token, each in pairs],
        "top_logprobs": [_ranked(each, name) for each in best] if top else None,
        "text_offset": offsets[: len(texts)],
    }


def prompt_logprobs(best: Sequence[Best | None]) -> list[dict[str, Any] | None]:
    """Return vLLM's `prompt_logprobs`: for each token of the prompt its entry and the best ones, by token id."""
    return [
        None if each is None else {str(token): _told(one) for token, one in each.items()} for each in best
    ]


def _told(one: Logprob) -> dict[str, Any]:
    return {"logprob": _bounded(one), "rank": one.rank, "decoded_token": one.decoded_token}


def _entry(token: int, best: Best, top: int, name: Name) -> dict[str, Any]:
    others = [_part(other, one, name) for other, one in best.items() if one.rank <= top]
    return {**_part(token, best[token], name), "top_logprobs": others}


def _part(token: int, one: Logprob, name: Name) -> dict[str, Any]:
    return {"token": name(token), "logprob": _bounded(one), "bytes": list(one.decoded_token.encode())}


def _ranked(best: Best | None, name: Name) -> dict[str, float] | None:
    """Return the best tokens and the one that stands there; of tokens with one text, the likeliest counts."""
    if best is None:
        return None
    ranked = sorted(best.items(), key=lambda item: item[1].rank, reverse=True)
    return {name(token): _bounded(one) for token, one in ranked}


def _bounded(one: Logprob) -> float:
    return max(one.logprob, FLOOR)
