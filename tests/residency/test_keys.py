"""Page keys: equal exactly when the salt, the fingerprint, the prefix and the tokens are equal."""

from __future__ import annotations

from itertools import combinations

import hypothesis.strategies as st
from hypothesis import given, settings

from tokenvm.residency.keys import ROOT, page_key
from tokenvm.vocab import PageKey

TOKENS = tuple(range(100, 116))


def chain(pages: list[list[int]], salt: bytes = b"s", fingerprint: bytes = b"f") -> list[PageKey]:
    keys = [ROOT]
    for tokens in pages:
        keys.append(page_key(salt, fingerprint, keys[-1], tokens))
    return keys[1:]


def test_keys_do_not_change_between_runs() -> None:
    """Pages outlive the process, so the address must as well."""
    assert page_key(b"salt", b"print", ROOT, [1, 2, 3]).hex() == "b28680ec4c740e2975459ab837d83767"


def test_every_field_separates() -> None:
    keys = [
        page_key(b"s", b"f", ROOT, TOKENS),
        page_key(b"S", b"f", ROOT, TOKENS),
        page_key(b"s", b"F", ROOT, TOKENS),
        page_key(b"s", b"f", PageKey(b"p"), TOKENS),
        page_key(b"s", b"f", ROOT, TOKENS[::-1]),
        page_key(b"s", b"f", ROOT, TOKENS[:-1]),
    ]
    assert all(len(key) == 16 for key in keys)
    assert all(one != other for one, other in combinations(keys, 2))


def test_bytes_cannot_move_from_one_field_to_the_next() -> None:
    assert page_key(b"ab", b"c", ROOT, TOKENS) != page_key(b"a", b"bc", ROOT, TOKENS)
    assert page_key(b"a", b"bc", ROOT, TOKENS) != page_key(b"a", b"b", PageKey(b"c"), TOKENS)
    parent = PageKey((7).to_bytes(8, "little"))
    assert page_key(b"a", b"b", parent, [8]) != page_key(b"a", b"b", ROOT, [7, 8])


def test_a_key_stands_for_the_whole_prefix() -> None:
    one = chain([[1, 2], [3, 4], [5, 6]])
    other = chain([[9, 2], [3, 4], [5, 6]])
    assert all(mine != theirs for mine, theirs in zip(one, other, strict=True))
    assert chain([[1, 2], [3, 4], [7, 8]])[:2] == one[:2]
    assert len(set(chain([[1, 2]] * 5))) == 5, "equal tokens further on are another page"


@settings(derandomize=True, max_examples=60, deadline=None, database=None)
@given(
    st.lists(
        st.tuples(
            st.binary(max_size=3),
            st.binary(max_size=3),
            st.binary(max_size=3),
            st.lists(st.integers(0, 2), max_size=3).map(tuple),
        ),
        unique=True,
        max_size=20,
    )
)
def test_different_pages_never_share_a_key(pages: list[tuple[bytes, bytes, bytes, tuple[int, ...]]]) -> None:
    keys = {page_key(salt, print_, PageKey(parent), tokens) for salt, print_, parent, tokens in pages}
    assert len(keys) == len(pages)
