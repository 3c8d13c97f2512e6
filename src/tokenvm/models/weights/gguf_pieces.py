"""A tokenizer of SentencePiece's BPE kind inside a GGUF file, as Llama 2, Mistral, Phi-3 and Gemma have it.

SentencePiece joins, again and again, the two neighbours whose joint piece has the highest score (Kudo and Richardson,
arXiv:1808.06226). A `tokenizers` BPE does so too, with a merge for every way to cut a piece in two, in the order of the
pieces' scores. What is not in the vocabulary falls back to bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tokenizers import Tokenizer, decoders, models, normalizers

SPACE: Final = "\u2581"
"""Stands for a space inside pieces."""

_NORMAL: Final = 1
_UNKNOWN: Final = 2
_USER_DEFINED: Final = 4


def piece_tokenizer(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    """Build the tokenizer without its added tokens; raises ValueError where scores or types are damaged."""
    scores, kinds = (
        _numbers(metadata, f"tokenizer.ggml.{key}", len(tokens)) for key in ("scores", "token_type")
    )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("tokenizer.ggml.tokens holds a token twice")
    joinable = {
        token: score
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
        if kind in (_NORMAL, _USER_DEFINED)
    }
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges_of(joinable), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    _mark_spaces(tokenizer, prefixed=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)))
    return tokenizer


def merges_of(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, the highest score first."""
    ways = [
        (score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    ways.sort(key=lambda way: (-way[0], -len(way[1])))
    return [(left, right) for _, left, right in ways]


def _mark_spaces(tokenizer: Tokenizer, *, prefixed: bool) -> None:
    """Spaces become a sign of their own, and a text that follows nothing or a special token begins with one."""
    marks = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), marks]) if prefixed else marks
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)


def _numbers(metadata: Mapping[str, Any], key: str, count: int) -> Sequence[float]:
    value = metadata.get(key)
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(f"{key} does not hold a number for each of {count} tokens")
    return value
