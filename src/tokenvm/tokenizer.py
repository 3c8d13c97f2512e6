"""Text to tokens and back, and a conversation to a prompt, from the files of a model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, overload

import tokenizers

from tokenvm.chat_template import ChatTemplate
from tokenvm.errors import ModelError, RequestError
from tokenvm.json_file import read_json

_UNFINISHED = "\ufffd"
"""What the decoder shows for bytes that are not (yet) a character."""

_CHARACTER_TOKENS: Final = 8
"""More tokens than any character is made of: UTF-8 has at most four bytes."""


class Tokenizer:
    """A model's tokenizer. Immutable and safe to share between threads.

    `eos_token_ids` and `bos_token_ids` hold one id, or none where the model names no such token.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], template: ChatTemplate
    ) -> None:
        self._backend = backend
        self._template = template
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.eos_token_ids = self._named(config, "eos_token")
        self.bos_token_ids = self._named(config, "bos_token")
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(token for token, entry in added.items() if entry.special)
        self._texts: dict[
            int, str
        ] = {}  # of tokens that were asked for; threads may enter the same one twice

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json and chat_template.jinja; only the first is required.

        Raises ModelError when a file is missing or damaged.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{path} does not exist: put the model's tokenizer.json there")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path} is damaged ({error}): download the model again") from error
        backend.no_truncation()
        backend.no_padding()
        settings = folder / "tokenizer_config.json"
        config = read_json(settings) if settings.is_file() else {}
        return cls(backend, config, ChatTemplate.from_folder(folder, config))

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be turned into prompts."""
        return self._template.is_present

    @property
    def chat_template(self) -> str:
        """The source of the chat template, empty where there is none."""
        return self._template.source

    def as_json(self) -> str:
        """Describe it as a tokenizer.json does."""
        return str(self._backend.to_str())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Turn text into token ids; `add_special_tokens` adds what the model wants at the start, if anything.

        Raises RequestError for text that is not valid Unicode.
        """
        try:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestError(
                f"the prompt is not valid text ({error}): pass a str of whole characters"
            ) from error
        return list(encoding.ids)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Turn token ids into text; bytes that form no character become U+FFFD, ids without a token nothing.

        Models often have more ids than their tokenizer has tokens. Raises RequestError for what is no id.
        """
        try:
            return str(self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))
        except (OverflowError, TypeError) as error:
            raise RequestError(f"these are not token ids ({error}): pass whole numbers from 0") from error

    def token_text(self, token_id: int) -> str:
        """The text of one token alone, special tokens included."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self.decode([token_id], skip_special_tokens=False)
        return text

    def is_silent(self, token_id: int, skip_special_tokens: bool = True) -> bool:
        """Whether `decode` leaves this token out before it looks at the others."""
        hidden = skip_special_tokens and token_id in self._special
        return hidden or self._backend.id_to_token(token_id) is None

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tokenize: Literal[True] = True,
        more: Mapping[str, Any] | None = None,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        tokenize: Literal[False],
        more: Mapping[str, Any] | None = None,
    ) -> str: ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tokenize: bool = True,
        more: Mapping[str, Any] | None = None,
    ) -> list[int] | str:
        """Turn a conversation ({"role", "content"} each) into the model's prompt, as token ids or as text.

        `more` has further names that the template may know, such as `tools` or `enable_thinking`.

        Raises RequestError when a message is malformed, the template refuses it, or there is no template.
        """
        text = self._template.render(messages, add_generation_prompt, more)
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def _named(self, config: Mapping[str, Any], key: str) -> tuple[int, ...]:
        entry = config.get(key)
        text = entry.get("content") if isinstance(entry, dict) else entry
        token = self._backend.token_to_id(text) if isinstance(text, str) else None
        return () if token is None else (token,)


class IncrementalDetokenizer:
    """Text as it grows, token by token.

    All texts joined, with that of `finish()`, are the decoding of all tokens. A character is given out only
    when all its bytes are there. Only a few tokens are kept and decoded again, whatever comes.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        self._settled = 0  # tokens of the window whose text has been given out whole
        self._sent = 0  # characters of the window's text given out

    def push(self, token_id: int) -> str:
        """Add a token and return the characters it completes, often one word, sometimes none."""
        if self._tokenizer.is_silent(token_id, self._skip_special_tokens):
            return ""
        self._window.append(token_id)
        text = self._text()
        finished = text.rstrip(_UNFINISHED)
        hopeless = len(self._window) - self._settled > 2 * _CHARACTER_TOKENS
        if hopeless:  # bytes that form no character, but for the newest ones
            finished = text.removesuffix(_UNFINISHED)
        new = finished[self._sent :]
        self._sent = max(self._sent, len(finished))
        if hopeless:
            self._slide(len(self._window) - _CHARACTER_TOKENS, len(text) - len(finished))
        elif new and finished == text:
            self._slide(self._settled, 0)
        return new

    def finish(self) -> str:
        """Return what is left, as U+FFFD: bytes that never became a character. Then start anew."""
        rest = self._text()[self._sent :]
        self._window.clear()
        self._settled = self._sent = 0
        return rest

    def _text(self) -> str:
        return self._tokenizer.decode(self._window, self._skip_special_tokens)

    def _slide(self, tokens: int, unsent: int) -> None:
        """Drop the first `tokens`; of the text of the others, all but the last `unsent` characters was given out.

        The tokens of the last text stay: some decoders treat the first token of a text apart.
        """
        del self._window[:tokens]
        self._settled = len(self._window) - (_CHARACTER_TOKENS // 2 if unsent else 0)
        self._sent = len(self._text()) - unsent
