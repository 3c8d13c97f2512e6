"""Tokenizers of scored pieces in GGUF files cut text as SentencePiece does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenvm.models.weights.gguf_pieces import SPACE
from tokenvm.models.weights.gguf_tokenizer import rebuild_tokenizer

PIECES = [
    *(f"{SPACE}{word}" for word in ("h", "he", "hello", "w", "wo", "world", "a", "an")),
    *("he", "ell", "llo", "lo", "or", "ld", "orld", "an", "and", "nd", "th", "the"),
    *sorted({*"helowrdant", SPACE}),
]
CONTROL, USER, BYTE, UNKNOWN, NORMAL = 3, 4, 6, 2, 1
HEAD = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("<|end|>", USER), (SPACE * 2, USER)]
TOKENS = [*HEAD, *((f"<0x{byte:02X}>", BYTE) for byte in range(256)), *((piece, NORMAL) for piece in PIECES)]
SCORES = {piece: -float(at) for at, piece in enumerate(PIECES)}


def metadata(**changes: Any) -> dict[str, Any]:
    found = {
        "model": "llama",
        "tokens": [token for token, _ in TOKENS],
        "scores": [SCORES.get(token, 0.0) for token, _ in TOKENS],
        "token_type": [kind for _, kind in TOKENS],
        "bos_token_id": 1,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (found | changes).items()}


def joined(text: str) -> list[str]:
    """SentencePiece by its definition: join the two neighbours of the highest score, the leftmost of equals."""
    pieces = list(text)
    while True:
        ways = [
            (-SCORES[left + right], at)
            for at, (left, right) in enumerate(pairwise(pieces))
            if left + right in SCORES
        ]
        if not ways:
            return pieces
        at = min(ways)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


@given(st.text(alphabet="helowrdant ", min_size=1, max_size=30).filter(lambda text: "  " not in f" {text}"))
def test_pieces_are_those_of_sentencepiece(text: str) -> None:
    tokenizer = rebuild_tokenizer(metadata())
    assert tokenizer.encode(text).tokens == ["<s>", *joined(SPACE + text.replace(" ", SPACE))]
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_spaces_bytes_and_special_tokens() -> None:
    plain = rebuild_tokenizer(metadata(add_space_prefix=False, add_bos_token=False))
    assert plain.encode("hello  world").tokens == ["he", "llo", SPACE * 2, "w", "orld"]
    assert plain.encode("\u00e9").tokens == ["<0xC3>", "<0xA9>"]
    assert plain.decode(plain.encode("th\u00e9 and\n").ids) == "th\u00e9 and\n"
    marked = rebuild_tokenizer(metadata())
    assert marked.encode("hello</s>hello<|end|>").tokens[:4] == [
        "<s>",
        f"{SPACE}hello",
        "</s>",
        f"{SPACE}hello",
    ]
    assert "<|end|>" in marked.encode("hello<|end|>").tokens
    assert marked.decode(marked.encode("hello</s>").ids) == "hello"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": [0.0]}, "tokenizer.ggml.scores does not hold a number for each"),
        ({"token_type": None}, "tokenizer.ggml.token_type does not hold"),
        ({"bos_token_id": 99999}, "bos_token_id is 99999"),
        ({"tokens": ["a"] * len(TOKENS)}, "a token twice"),
    ],
    ids=str,
)
def test_a_damaged_vocabulary_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rebuild_tokenizer(metadata(**changes))
