"""Sizes and durations as people write them, "24GB" or "7d", and as programs need them, bytes and seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from tokenvm.errors import ConfigError

_UNITS: Final[Mapping[str, int]] = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS: Final[Mapping[str, int]] = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
_LARGEST: Final = 2**62


def parse_size(value: object, name: str = "size") -> int:
    """Turn "24GB" (10⁹), "512MiB" (2²⁰) or a number of bytes into bytes.

    Units are B, kB, MB, GB, TB and KiB, MiB, GiB, TiB in any case. Raises ConfigError that names `name`.
    """
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found and found[2].lower() in _UNITS:
        size = _exactly(found[1], _UNITS[found[2].lower()])
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise ConfigError(f'{name}={value!r} is not a size: write it like "24GB", "512MiB" or 1000000')
    if not 0 <= size <= _LARGEST:
        raise ConfigError(f'{name}={value!r} is out of range: write a size from 0 to 4 EiB, like "24GB"')
    return size


def parse_duration(value: object, name: str) -> int:
    """Turn "45s", "30min", "12h", "7d", "2w" or a number of seconds into whole seconds, at least 1.

    Raises ConfigError that names `name`.
    """
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found and found[2].lower() in _SECONDS:
        seconds = _exactly(found[1], _SECONDS[found[2].lower()])
    elif isinstance(value, int) and not isinstance(value, bool):
        seconds = value
    else:
        raise ConfigError(f'{name}={value!r} is not a duration: write it like "12h", "7d" or 3600')
    if not 0 < seconds <= _LARGEST:
        raise ConfigError(f'{name}={value!r} is out of range: write a duration of at least "1s"')
    return seconds


def format_size(size_bytes: int) -> str:
    """Write bytes for people, in decimal units, at most three digits after the point: "1.5 GB"."""
    for unit in ("TB", "GB", "MB", "kB"):
        scale = _UNITS[unit.lower()]
        if size_bytes >= scale:
            return f"{size_bytes / scale:.3f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{size_bytes} B"


def _exactly(number: str, unit: int) -> int:
    """Multiply without rounding through a float; a fraction of a byte is cut off."""
    whole, _, fraction = number.partition(".")
    places = int("1" + "0" * len(fraction))
    return int(whole) * unit + int(fraction or "0") * unit // places
