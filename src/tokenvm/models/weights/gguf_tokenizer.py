"""The tokenizer inside a GGUF file, rebuilt as a tokenizer.json: byte-level BPE, as in GPT-2, or SentencePiece's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from tokenvm.models.weights.gguf_pieces import SPACE, piece_tokenizer

_LETTERS_AND_SHORT_NUMBERS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LETTERS_AND_DIGITS: Final = _LETTERS_AND_SHORT_NUMBERS.replace(r"\p{N}{1,3}", r"\p{N}")
_ROLES: Final[Mapping[str, str]] = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "padding": "pad_token",
}
_CONTROL: Final = 3
_USER_DEFINED: Final = 4


class UnknownTokenizer(Exception):  # noqa: N818 - turned into a ModelError by the converter
    """The file's tokenizer is of a kind that cannot be rebuilt; the text says which and what can."""


@dataclass(frozen=True, slots=True)
class _Splitting:
    """How text is cut before merging. `starts_with_bos` is the default where the file does not say."""

    pre_tokenizer: pre_tokenizers.PreTokenizer
    ignore_merges: bool = False
    starts_with_bos: bool = False


def rebuild_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build a tokenizer from a GGUF file's metadata.

    Raises UnknownTokenizer for a kind that is not supported and ValueError for a damaged vocabulary.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "llama":
        return _of_pieces(metadata)
    if kind != "gpt2":
        raise UnknownTokenizer(f"tokenizer model {kind!r}; supported are 'gpt2' and 'llama'")
    splitting = _splitting(metadata.get("tokenizer.ggml.pre", "gpt-2"))
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    tokenizer = Tokenizer(
        _byte_pairs(tokens, _strings(metadata, "tokenizer.ggml.merges"), splitting.ignore_merges)
    )
    tokenizer.pre_tokenizer = splitting.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, metadata.get("tokenizer.ggml.token_type", []))
    if metadata.get("tokenizer.ggml.add_bos_token", splitting.starts_with_bos):
        _start_with(tokenizer, tokens, metadata.get("tokenizer.ggml.bos_token_id"))
    return tokenizer


def special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of the special tokens the file names, keyed as in tokenizer_config.json."""
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    found = {name: metadata.get(f"tokenizer.ggml.{role}_token_id") for role, name in _ROLES.items()}
    return {name: tokens[at] for name, at in found.items() if isinstance(at, int) and 0 <= at < len(tokens)}


def _of_pieces(metadata: Mapping[str, Any]) -> Tokenizer:
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    tokenizer = piece_tokenizer(metadata, tokens)
    _add_tokens(tokenizer, tokens, metadata["tokenizer.ggml.token_type"])
    if metadata.get("tokenizer.ggml.add_bos_token", True):
        _start_with(tokenizer, tokens, metadata.get("tokenizer.ggml.bos_token_id"))
    return tokenizer


def _splitting(name: str) -> _Splitting:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    table = {
        "gpt-2": _Splitting(byte_level),
        "smollm": _Splitting(
            pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        ),
        "llama-bpe": _Splitting(
            _by_regex(_LETTERS_AND_SHORT_NUMBERS), ignore_merges=True, starts_with_bos=True
        ),
        "qwen2": _Splitting(_by_regex(_LETTERS_AND_DIGITS)),
    }
    if name not in table:
        raise UnknownTokenizer(f"pre-tokenizer {name!r}; supported are {', '.join(map(repr, table))}")
    return table[name]


def _by_regex(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{key} is missing")
    return value


def _byte_pairs(tokens: list[str], merges: list[str], ignore_merges: bool) -> models.BPE:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("tokenizer.ggml.tokens holds a token twice")
    pairs = [_merge(merge, vocabulary) for merge in merges]
    return models.BPE(vocabulary, pairs, ignore_merges=ignore_merges)


def _merge(text: str, vocabulary: Mapping[str, int]) -> tuple[str, str]:
    left, _, right = text.partition(" ")
    if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
        raise ValueError(f"tokenizer.ggml.merges holds {text!r}")
    return left, right


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    """Make control tokens special, and user-defined ones unsplittable.

    Those with the sign for a space are found in text whose spaces have become signs.
    """
    pairs = list(zip(tokens, kinds, strict=False))
    special = [AddedToken(text, special=True, normalized=False) for text, kind in pairs if kind == _CONTROL]
    plain = [
        AddedToken(text, special=False, normalized=SPACE in text)
        for text, kind in pairs
        if kind == _USER_DEFINED
    ]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _start_with(tokenizer: Tokenizer, tokens: list[str], bos: object) -> None:
    if not isinstance(bos, int) or not 0 <= bos < len(tokens):
        raise ValueError(f"tokenizer.ggml.bos_token_id is {bos!r}")
    text = tokens[bos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{text} $A", pair=f"{text} $A {text}:1 $B:1", special_tokens=[(text, bos)]
    )
