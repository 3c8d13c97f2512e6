"""Stop strings against a search through the whole text at each character."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenvm.stop_strings import StopStrings

TEXTS = st.text("ab", max_size=24)
STOPS = st.lists(st.text("abc", min_size=1, max_size=9), max_size=3)


def first_stop(text: str, stops: list[str], least_end: int = 0) -> tuple[int, str] | None:
    """Where the first stop string ends that ends behind `least_end`, and which it is."""
    for end in range(least_end + 1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return end, max(ended, key=len)
    return None


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(edges)]


@given(TEXTS, STOPS, st.lists(st.integers(0, 24), max_size=12), st.booleans(), st.integers(0, 6))
@settings(max_examples=500)
def test_pieces_give_what_the_whole_text_gives(
    text: str, stops: list[str], cuts: list[int], include: bool, ignored: int
) -> None:
    """However the text is cut, and with the first pieces not counting."""
    pieces = pieces_of(text, cuts)
    found = first_stop(text, stops, len("".join(pieces[:ignored])))
    watch, told = StopStrings(stops, include), ""
    for at, piece in enumerate(pieces):
        told += watch.push(piece, counts=at >= ignored)
        if watch.found is not None:
            break
        assert text.startswith(told)
    told += watch.rest()
    if found is None:
        assert (told, watch.found) == (text, None)
    else:
        end, stop = found
        assert watch.found == stop
        assert told == text[: end if include else end - len(stop)]


@given(TEXTS, STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    watch, told = StopStrings(stops), ""
    for character in text:
        told += watch.push(character)
        if watch.found is not None:
            return
    held = text[len(told) :]
    assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_stop_string_longer_than_any_look_back() -> None:
    stop = "ab" * 5000 + "c"
    watch = StopStrings([stop])
    assert watch.push("ab" * 20) == ""
    assert watch.push("ab" * 5000) == "ab" * 20
    assert watch.push("cc") == ""
    assert watch.found == stop


@pytest.mark.parametrize(
    ("stops", "found"), [(["b", "abc"], "b"), (["bc", "abc"], "abc"), (["abc", "c"], "abc")]
)
def test_the_first_to_be_complete_ends_the_text(stops: list[str], found: str) -> None:
    watch = StopStrings(stops)
    assert watch.push("xabcx") == "xabc"[: "xabc".index(found)]
    assert watch.found == found


def test_without_stop_strings_nothing_is_held_back() -> None:
    watch = StopStrings([])
    assert watch.push("anything") == "anything"
    assert watch.rest() == ""
