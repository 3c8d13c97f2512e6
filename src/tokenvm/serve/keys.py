"""API keys: where they come from, and comparing them in a time that tells nothing."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tokenvm.errors import ConfigError

VARIABLE: Final = "TOKENVM_API_KEY"


class Keys:
    """The keys that are accepted, as hashes. With none, everybody is let in."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def accept(self, authorization: str) -> bool:
        """Whether an Authorization header brings a key; takes as long for a wrong one as for a right one."""
        if not self._digests:
            return True
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        same = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(same)


def read_keys(given: Iterable[str], file: Path | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Collect keys from the command line, a file with one a line, and the environment (comma separated).

    Raises ConfigError for a file that cannot be read or holds none, and for an empty key.
    """
    keys = [*given, *filter(None, environ.get(VARIABLE, "").split(","))]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--api-key-file {file} cannot be read ({error}): name a file of keys"
            ) from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise ConfigError(f"--api-key-file {file} holds no key: write one on each line")
        keys += found
    if not all(key.strip() for key in keys):
        raise ConfigError("an API key is empty: type --api-key with some characters, or leave it out")
    return tuple(key.strip() for key in keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
