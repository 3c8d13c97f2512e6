"""Conversations to prompts: a model's Jinja template in a sandbox, with the names Hugging Face gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenvm.errors import ModelError, RequestError

_FILE: Final = "chat_template.jinja"
_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "pad_token")


class ChatTemplate:
    """A compiled template, or the absence of one. `tokens`: the special tokens a template may name."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self.source = source
        self.is_present = bool(source)
        self._tokens = dict(tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(
                f"the model's chat template is damaged ({error}): download the model again"
            ) from error

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> ChatTemplate:
        """Take the folder's chat_template.jinja, else chat_template of its tokenizer_config.json `config`."""
        path = folder / _FILE
        tokens = {name: _text(config[name]) for name in _TOKENS if config.get(name)}
        if not path.is_file():
            return cls(_default_of(config.get("chat_template")), tokens)
        try:
            return cls(path.read_text(encoding="utf-8"), tokens)
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} cannot be read ({error}): download the model again") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        more: Mapping[str, Any] | None = None,
    ) -> str:
        """Turn messages into the prompt's text; `more` has further names that the template may know, such as `tools`.

        Raises RequestError for what is not accepted.
        """
        if not self.is_present:
            raise RequestError(
                "this model has no chat template: pass a prompt instead, or use an instruct model"
            )
        checked = check_messages(messages)
        named = {key: _plain(value, f"{key} of the chat template") for key, value in (more or {}).items()}
        fixed = {"messages": checked, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render({"tools": None, "documents": None, **self._tokens, **named, **fixed})
        except Exception as error:  # a template is foreign code and may raise anything
            raise RequestError(f"the model's chat template refuses these messages: {error}") from error


def check_messages(messages: object) -> list[dict[str, Any]]:
    """Return plain copies of the messages; raises RequestError, naming the first that is malformed.

    A message maps `role` to a string and `content` to text, or to parts {"type": "text", "text": ...}.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise RequestError('messages must be a list like [{"role": "user", "content": "Hello"}]')
    return [_message(index, message) for index, message in enumerate(messages)]


def _message(index: int, message: object) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise RequestError(
            f'{where} must be like {{"role": "user", "content": "Hello"}}, not {message!r:.80}'
        )
    if not isinstance(message.get("role"), str) or not message["role"]:
        raise RequestError(
            f'{where}["role"] must be a string such as "user", not {message.get("role")!r:.80}'
        )
    plain = {str(key): _plain(value, f'{where}["{key}"]') for key, value in message.items()}
    plain["content"] = _content(message.get("content"), where)
    return plain


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else ()
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    if not parts or len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        raise RequestError(
            f'{where}["content"] must be text, or a list of {{"type": "text", "text": ...}}: '
            "only text is supported"
        )
    return "".join(map(str, texts))


def _plain(value: object, where: str) -> object:
    """Return a copy made of JSON types alone, so that a template meets no object with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    raise RequestError(f"{where} holds a {type(value).__name__}: pass strings, numbers, lists and dicts")


def _default_of(entry: object) -> str:
    """Return the template, or the one named "default" of several; empty text when there is none."""
    if isinstance(entry, list):
        named = {item.get("name"): item.get("template") for item in entry if isinstance(item, dict)}
        entry = named.get("default")
    return entry if isinstance(entry, str) else ""


def _text(token: object) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks, for training, what the assistant wrote: no effect."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own way to name a tag

    def parse(self, parser: Parser) -> Node | list[Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_pass"), [], [], body).set_lineno(line)

    def _pass(self, caller: Any) -> Any:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Like json.dumps; Jinja's own filter would escape HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
