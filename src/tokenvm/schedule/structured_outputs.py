"""What an answer must look like: the fields of a request, and what may be given for each."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from tokenvm.errors import RequestError

KINDS: Final = ("json", "regex", "choice", "grammar", "json_object")
"""The fields that say what is asked for; exactly one of them is given."""

_WHERE: Final = "SamplingParams.structured_outputs"


@dataclass(frozen=True)
class StructuredOutputsParams:
    """What an answer must look like; names are those of vLLM. Exactly one of the first five is given.

    json: a JSON Schema, as text or as a dict; kept as text. regex: all of the answer matches it. choice: the answer is
    one of these. grammar: Lark, or GBNF as llama.cpp has it. json_object: any JSON object. JSON is written with at most
    a line break and sixteen spaces between two of its tokens; `whitespace_pattern`, a regex, allows something else, and
    with `disable_any_whitespace` there is none.

    Raises RequestError for what is none of that; whether a schema, regex or grammar can be followed is told by
    `refuse_bad_structure`.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] | list[str] | None = None
    grammar: str | None = None
    json_object: bool = False
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise RequestError(f"{_WHERE} names {given or 'nothing'}: give exactly one of {', '.join(KINDS)}")
        self._check_texts()
        self._check_whitespace(given[0])
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))

    @classmethod
    def of(cls, given: StructuredOutputsParams | Mapping[str, Any]) -> StructuredOutputsParams:
        """Take them as they are or as a dict. Raises RequestError for a key that is not known."""
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise RequestError(f"{_WHERE}={given!r:.80} is not possible: give StructuredOutputsParams(...)")
        unknown = sorted(set(map(str, given)) - {field.name for field in fields(cls)})
        if unknown:
            raise RequestError(f"{_WHERE} has no field {unknown[0]!r}: give one of {', '.join(KINDS)}")
        return cls(**given)

    @property
    def kind(self) -> str:
        """Which of the five was given."""
        return next(name for name in KINDS if getattr(self, name) not in (None, False))

    def _check_texts(self) -> None:
        for name in ("regex", "grammar", "whitespace_pattern"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise RequestError(f"{_WHERE}.{name}={value!r:.80} is not possible: give a text")
        for name in ("json_object", "disable_any_whitespace"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{_WHERE}.{name} is not possible: give True or False")

    def _check_whitespace(self, kind: str) -> None:
        if self.whitespace_pattern is not None and self.disable_any_whitespace:
            raise RequestError(
                f"{_WHERE} has whitespace_pattern and disable_any_whitespace: give one of the two"
            )
        shaped = self.whitespace_pattern is not None or self.disable_any_whitespace
        if shaped and kind not in ("json", "json_object"):
            raise RequestError(
                f"{_WHERE}: whitespace is chosen for JSON only: leave that out beside {kind}, which says it itself"
            )


def _schema_text(given: Any) -> str:
    """Return a schema as text. Raises RequestError for what is no schema."""
    try:
        schema = json_text.loads(given) if isinstance(given, str) else given
        text = json_text.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{_WHERE}.json is not JSON ({error}): give a JSON Schema") from error
    if not isinstance(schema, Mapping | bool):
        raise RequestError(f'{_WHERE}.json is no schema: give one such as {{"type": "object"}}')
    return text


def _choices(given: Any) -> tuple[str, ...]:
    plain = isinstance(given, tuple | list) and given and all(isinstance(one, str) and one for one in given)
    if not plain:
        raise RequestError(f"{_WHERE}.choice={given!r:.80} is not possible: give a list of texts")
    return tuple(given)
