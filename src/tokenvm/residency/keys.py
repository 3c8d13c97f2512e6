"""Content addresses of pages: equal keys mean equal bytes."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from tokenvm.vocab import PageKey

ROOT = PageKey(b"")
"""The parent of a sequence's first page."""


def page_key(salt: bytes, fingerprint: bytes, parent: PageKey, token_ids: Sequence[int]) -> PageKey:
    """Return the 16-byte address (BLAKE2b) of a page.

    `fingerprint` covers all that shapes the bytes of KV besides the tokens: weights, dtype, rope, block_tokens,
    layout_id, numerics_id. `parent` is the key of the page before it, so a key stands for the whole prefix.
    """
    digest = hashlib.blake2b(digest_size=16)
    for field in (salt, fingerprint, parent):
        digest.update(len(field).to_bytes(4, "little"))
        digest.update(field)
    digest.update(array("q", token_ids).tobytes())
    return PageKey(digest.digest())
