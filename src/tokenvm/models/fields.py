"""Typed look-ups in a model's config.json; every complaint names the key and the value found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenvm.errors import ModelError


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object that must hold what the maths needs. `source` names it in messages.

    A key whose value is null counts as absent. A wrong type or a value out of range raises ModelError.
    """

    values: Mapping[str, Any]
    source: str

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def count(self, key: str, default: int | None = None) -> int:
        """A positive whole number; without a default the key is required."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(key, value, "a whole number of at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number; without a default the key is required."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.wrong(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def name(self, key: str, default: str | None = None) -> str:
        """A string; without a default the key is required."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, value, "a string")
        return value

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids: one, a list of them, or none when the key is absent."""
        value = self.values.get(key)
        found = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in found):
            raise self.wrong(key, value, "a token id or a list of token ids")
        return tuple(found)

    def section(self, key: str) -> Fields:
        """A JSON object, empty when the key is absent."""
        value = self._value(key, {})
        if not isinstance(value, Mapping):
            raise self.wrong(key, value, "an object")
        return Fields(value, f"{self.source}: {key}")

    def wrong(self, key: str, value: object, expected: str) -> ModelError:
        """Return the complaint that `key` holds `value` where `expected` was needed."""
        return ModelError(
            f"{self.source}: {key} is {value!r}, but must be {expected}: use an unmodified copy of the model"
        )

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is None:
            raise ModelError(f"{self.source}: {key} is missing: use an unmodified copy of the model")
        return default if value is None else value
