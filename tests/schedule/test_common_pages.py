"""Pages in common, against sets of pages."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from tokenvm.schedule.common_pages import Sharing, path_of
from tokenvm.schedule.request import Request
from tokenvm.schedule.sampling_params import SamplingParams
from tokenvm.vocab import SeqId


def asked(*ids: int, salt: str = "") -> Request:
    return Request("r", ids, SamplingParams(), cache_salt=salt)


def test_pages_are_named_by_all_tokens_up_to_their_end_and_the_salt() -> None:
    path = path_of(asked(*range(13)), 4)
    assert len(path) == 3, "the last token is never found"
    assert len(path_of(asked(*range(12)), 4)) == 2
    assert path_of(asked(*range(9), 50), 4) == path[:2]
    assert not set(path_of(asked(9, *range(1, 13)), 4)) & set(path)
    assert not set(path_of(asked(*range(13), salt="mine"), 4)) & set(path)


PATHS = [(1, 2, 3, 4), (1, 2, 5), (1, 6), (7, 8, 9)]


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from(["begin", "leave", "join", "end", "cut"]), st.integers(0, 9))))
def test_duplicates_are_what_sets_of_pages_say(operations: list[tuple[str, int]]) -> None:
    """A sequence finds what others that live have computed of its path, and computes the rest for itself."""
    sharing = Sharing()
    pages: dict[int, list[tuple[int, int]]] = {}  # sequence → its pages: a name, and who computed it
    on_device: set[int] = set()
    for number, (operation, at) in enumerate(operations):
        seq = SeqId(at)
        if operation == "begin" and at not in pages:
            path = PATHS[number % len(PATHS)]
            known = {page for others in pages.values() for page in others}
            found: list[tuple[int, int]] = []
            for name in path:
                whose = [page for page in known if page[0] == name]
                if not whose:
                    break
                found.append(min(whose))
            sharing.begin(seq, path, len(found))
            computed = [(name, number) for name in path[len(found) :]]
            pages[at] = found + computed
            on_device.add(at)
        elif operation == "leave":
            sharing.leave(seq)
            on_device.discard(at)
        elif operation == "join" and at in pages:
            sharing.join(seq)
            on_device.add(at)
        elif operation == "end":
            sharing.end(seq)
            pages.pop(at, None)
            on_device.discard(at)
        elif operation == "cut" and at in pages:
            for other, held in pages.items():  # a page is lost to all who share it
                if held[1:2] == pages[at][1:2] and (other == at or len(held) > 1):
                    sharing.cut(SeqId(other), 1)
                    pages[other] = held[:1]
        held_pages = [page for at in on_device for page in pages[at]]
        assert sharing.duplicates == len(held_pages) - len(set(held_pages))


def test_what_is_found_lacks_nothing_while_somebody_on_the_device_shares_it() -> None:
    sharing, first, second = Sharing(), SeqId(0), SeqId(1)
    path = (1, 2, 3)
    sharing.begin(first, path, 0)
    assert (sharing.depth(first), sharing.lacking(path)) == (0, 3), "nobody has asked for its pages"
    sharing.begin(second, (1, 2, 5), 2)
    assert (sharing.depth(first), sharing.depth(second)) == (2, 2)
    assert sharing.lacking(path[:2]) == 0
    sharing.leave(first)
    assert sharing.lacking(path[:2]) == 0
    sharing.cut(second, 1)
    assert (sharing.depth(second), sharing.lacking(path[:2])) == (1, 1)
    sharing.end(second)
    assert sharing.lacking(path[:2]) == 2
