"""Sequences and their pages."""

from __future__ import annotations

import pytest

from tokenvm.residency.keys import ROOT
from tokenvm.residency.page_table import PageTable
from tokenvm.vocab import PageKey, SeqId, UnitId

BLOCK_TOKENS = 4
A, B = SeqId(1), SeqId(2)


def table_with(tokens: int, seq: SeqId = A) -> PageTable:
    """Make a table with one sequence of `tokens` tokens; page i is unit 10 + i, sealed pages have keys."""
    table = PageTable(BLOCK_TOKENS)
    table.add(seq)
    for index in range(table.missing_pages(seq, tokens)):
        table.append(seq, UnitId(10 + index))
    for unit in table.advance(seq, tokens):
        table.add_key(seq, PageKey(b"%d" % unit))
    table.check()
    return table


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_pages_needed(tokens: int, pages: int) -> None:
    table = PageTable(BLOCK_TOKENS)
    table.add(A)
    assert table.missing_pages(A, tokens) == pages
    assert table_with(tokens).missing_pages(A, tokens) == 0
    assert table_with(8).missing_pages(A, tokens) == 0


def test_pages_seal_when_committed_tokens_fill_them() -> None:
    table = table_with(3)
    table.append(A, UnitId(11))
    table.append(A, UnitId(12))
    assert table.advance(A, 0) == []
    assert table.advance(A, 1) == [10]
    assert table.advance(A, 3) == []
    assert table.advance(A, 5) == [11, 12]
    with pytest.raises(AssertionError, match="no page for it"):
        table.advance(A, 1)


def test_keys_follow_the_sealed_pages() -> None:
    assert table_with(3).last_key(A) == ROOT
    table = table_with(9)
    assert table.keys(A) == [b"10", b"11"]
    assert table.last_key(A) == b"11"


@pytest.mark.parametrize(
    ("length", "kept", "gone", "keys"),
    [
        (10, 10, [], 2),
        (10, 9, [], 2),
        (10, 8, [12], 2),
        (10, 4, [11, 12], 1),
        (10, 0, [10, 11, 12], 0),
        (8, 8, [], 2),
        (8, 4, [11], 1),
        (3, 1, [], 0),
        (3, 0, [10], 0),
    ],
)
def test_truncate(length: int, kept: int, gone: list[int], keys: int) -> None:
    table = table_with(length)
    assert table.truncate(A, kept) == gone
    assert (table.length_tokens(A), len(table.keys(A))) == (kept, keys)
    table.check()


def test_truncate_lets_pages_go_that_were_never_filled() -> None:
    table = table_with(8)
    table.append(A, UnitId(12))
    assert table.truncate(A, 8) == [12]


@pytest.mark.parametrize(("length", "kept"), [(10, 7), (8, 7), (10, 11), (10, -1)])
def test_a_sealed_page_is_never_cut_and_nothing_is_invented(length: int, kept: int) -> None:
    with pytest.raises(AssertionError):
        table_with(length).truncate(A, kept)


def test_fork_shares_sealed_pages_and_goes_its_own_way() -> None:
    table = table_with(10)
    assert table.fork(A, B) == [10, 11]
    assert (table.length_tokens(B), table.keys(B)) == (8, table.keys(A))
    table.append(B, UnitId(20))
    table.advance(B, 4)
    table.add_key(B, PageKey(b"20"))
    assert (table.pages(A), table.pages(B)) == ([10, 11, 12], [10, 11, 20])
    assert len(table.keys(A)) == 2
    assert table.remove(A) == [10, 11, 12]
    assert (table.sequences(), A in table, B in table) == ([B], False, True)
    table.check()


def test_a_fork_made_before_the_keys_were_given_lets_them_be_given() -> None:
    table = PageTable(BLOCK_TOKENS)
    table.add(A)
    table.append(A, UnitId(10))
    table.advance(A, 4)
    table.fork(A, B)
    table.add_key(B, PageKey(b"10"))
    assert (len(table.keys(A)), len(table.keys(B))) == (0, 1)


def test_every_change_of_pages_grows_the_version() -> None:
    table = table_with(10)
    seen = [table.version]
    for change in (
        lambda: table.fork(A, B),
        lambda: table.append(B, UnitId(20)),
        lambda: table.truncate(B, 4),
        lambda: table.remove(B),
    ):
        change()
        seen.append(table.version)
    assert seen == sorted(set(seen))


def test_a_sequence_is_added_once() -> None:
    with pytest.raises(AssertionError, match="already there"):
        table_with(1).add(A)


def test_check_fails_when_a_law_is_broken() -> None:
    table = table_with(10)
    table._entries[A].length_tokens = 13
    with pytest.raises(AssertionError, match="too long"):
        table.check()
    table = table_with(10)
    table.add_key(A, PageKey(b"12"))
    with pytest.raises(AssertionError, match="open page has a key"):
        table.check()
    table = table_with(10)
    table._entries[A].pages[2] = UnitId(10)
    with pytest.raises(AssertionError, match="twice"):
        table.check()


def test_a_sequence_begins_with_pages_that_others_computed() -> None:
    table = table_with(9)
    version = table.version
    table.adopt(B, table.pages(A)[:2], table.keys(A)[:2])
    assert table.version > version
    assert (table.length_tokens(B), table.pages(B), table.last_key(B)) == (8, [10, 11], b"11")
    table.append(B, UnitId(90))
    assert table.pages(A) == [10, 11, 12], "the lists are their own"
    table.check()


def test_the_open_page_is_the_one_that_holds_the_last_committed_tokens() -> None:
    assert [table_with(length).open_page(A) for length in (0, 3, 4, 9)] == [[], [10], [], [12]]
    table = table_with(9)
    assert table.replace(A, 2, UnitId(77)) == 12
    assert table.open_page(A) == [77]
