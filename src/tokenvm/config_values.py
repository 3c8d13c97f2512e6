"""What a single setting may be: known, a whole number, a choice, a yes or no. Each refusal says what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tokenvm.errors import ConfigError


def check_keys(given: Iterable[object], known: Iterable[str], what: str) -> None:
    """Raise ConfigError for the first key that is not known, naming the nearest known one."""
    names = list(known)
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(names)}"
            raise ConfigError(f"unknown {what} {str(key)!r}: {hint}")


def megabytes(variable: str, text: str) -> str:
    """Read the value of an environment variable that counts megabytes, as a size."""
    if not text.strip().replace(".", "", 1).isdecimal():
        raise ConfigError(f"{variable}={text!r} is not a number of megabytes: set {variable}=64")
    return f"{text.strip()}MB"


def whole_number(value: object, name: str, smallest: int) -> int:
    """Read a whole number, or ConfigError."""
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if isinstance(number, bool) or not isinstance(number, int) or number < smallest:
        raise ConfigError(
            f'{name}={value!r} is not a whole number of at least {smallest}: use one, or "auto"'
        )
    return number


def listed(choices: tuple[str, ...]) -> str:
    """Name the choices in a sentence."""
    return " or ".join(f'"{choice}"' for choice in choices)


def yes_or_no(value: object, name: str) -> bool:
    """Read true or false, also as text; or ConfigError."""
    text = str(value).strip().lower()
    if isinstance(value, bool | str | int) and text in ("true", "1", "yes", "false", "0", "no"):
        return text in ("true", "1", "yes")
    raise ConfigError(f"{name}={value!r} is neither true nor false: use one of the two")
