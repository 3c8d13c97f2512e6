"""Lossless codecs of a tier. The only one so far changes nothing."""

from __future__ import annotations

from typing import Protocol


class Codec(Protocol):
    """Turns a part's bytes into fewer and back, exactly."""

    @property
    def name(self) -> str:
        """The word by which configuration and files know it."""
        ...

    def encoded_bytes(self, part_bytes: int) -> int:
        """Bytes of the slot size class that a part of `part_bytes` is given."""
        ...


class Identity:
    """The null codec: bytes go as they are."""

    name = "none"

    def encoded_bytes(self, part_bytes: int) -> int:
        """Return `part_bytes`."""
        return part_bytes
