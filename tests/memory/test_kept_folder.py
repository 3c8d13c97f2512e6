"""A folder of kept pages seen from outside: inspected, verified and pruned, live or not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kept_pages import (
    LAYOUT,
    OURS,
    THEIRS,
    dead,
    found,
    key_of,
    on_disk_bytes,
    opened,
    part_of,
    put,
    put_chain,
)

from tokenvm.errors import StorageError
from tokenvm.memory.kept_folder import inspect_folder, prune_folder, verify_folder
from tokenvm.memory.page_index import INDEX_NAMES, remove_index


def test_an_empty_or_absent_folder(tmp_path: Path) -> None:
    facts = inspect_folder(tmp_path)
    assert (facts.state, facts.pages, facts.writer) == ("blank", 0, 0)
    with pytest.raises(StorageError, match="is not a folder"):
        inspect_folder(tmp_path / "gone")
    with pytest.raises(StorageError, match="is blank"):
        verify_folder(tmp_path)
    with pytest.raises(StorageError, match="is not a folder"):
        prune_folder(tmp_path / "gone", 0.0)


def test_it_says_what_is_there_while_it_is_used(tmp_path: Path) -> None:
    now = [1000.0]
    store = opened(tmp_path, now_s=lambda: now[0])
    put(store, 0, 1)
    now[0] = 1500.0
    put(store, 1, 2, parent=1)
    store.register.flush()
    facts = inspect_folder(tmp_path)
    assert (facts.state, facts.writer, facts.pages, facts.capacity) == ("good", os.getpid(), 2, 8)
    assert (facts.oldest_s, facts.newest_s) == (1000, 1500)
    assert facts.models == {OURS.hex(): 2}
    assert 4 * LAYOUT.page_bytes < facts.taken_bytes <= on_disk_bytes(tmp_path)
    assert verify_folder(tmp_path).pages == 2
    store.close()
    assert inspect_folder(tmp_path).writer == 0


def test_damage_is_found_part_by_part(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put_chain(store, 6)
    place = store.places(2, 1)
    store.close()
    slab = tmp_path / "slab-00000"
    data = bytearray(slab.read_bytes())
    data[int(place.place) + LAYOUT.part_stride - 1] ^= 1
    slab.write_bytes(data)
    (tmp_path / "slab-00001").unlink()
    seen: list[tuple[int, int]] = []
    verified = verify_folder(tmp_path, lambda done, total: seen.append((done, total)))
    assert (verified.damaged, sorted(verified.missing), verified.changed) == ([2], [4, 5], 0)
    assert seen[-1] == (6, 6)


def test_a_page_that_is_written_again_meanwhile_is_no_damage(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put_chain(store, 2)
    store.register.flush()

    def rewrite(done: int, total: int) -> None:
        if done == 1:
            put(store, 1, 7)
            store.register.flush()

    verified = verify_folder(tmp_path, rewrite)
    assert (verified.pages, verified.damaged, verified.changed) == (2, [], 1)
    store.close()


def test_pruning_by_age_takes_what_goes_on_from_it_too_and_erases(tmp_path: Path) -> None:
    now = [1000.0]
    store = opened(tmp_path, now_s=lambda: now[0])
    put(store, 0, 1)
    put(store, 4, 4)
    now[0] = 2000.0
    put(store, 1, 2, parent=1)
    put(store, 2, 3)
    with pytest.raises(StorageError, match="keeps its pages"):
        prune_folder(tmp_path, 1500.0)
    store.close()
    assert prune_folder(tmp_path, 1500.0) == (3, 1)
    left = b"".join(path.read_bytes() for path in tmp_path.glob("slab-*"))
    assert part_of(3, 0) in left
    assert not any(part_of(page, layer) in left for page in (1, 2, 4) for layer in range(3))
    assert not (tmp_path / "slab-00001").exists(), "a slab of empty slots is deleted"
    assert verify_folder(tmp_path).damaged == []
    again = opened(tmp_path)
    assert found(again) == {2: 3}
    again.close()


def test_pruning_all_leaves_nothing_but_what_is_not_ours(tmp_path: Path) -> None:
    store = opened(tmp_path, fingerprint=THEIRS)
    put_chain(store, 6)
    dead(store)
    (tmp_path / "note").write_text("mine")
    assert prune_folder(tmp_path, float("inf")) == (6, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "note"}
    again = opened(tmp_path)
    put(again, 0, 1)
    again.close()
    assert prune_folder(tmp_path, 0.0) == (0, 1)
    third = opened(tmp_path)
    assert [page.key for page in third.register.found] == [key_of(1)]
    third.close()


def test_pages_of_unknown_age_stay_unless_all_are_to_go(tmp_path: Path) -> None:
    assert prune_folder(tmp_path, 0.0) == (0, 0), "nothing is there"
    store = opened(tmp_path)
    put_chain(store, 3)
    store.close()
    for name in INDEX_NAMES:
        (tmp_path / name).write_bytes(b"x" * 8192)
    for state in ("damaged", "blank"):
        with pytest.raises(StorageError, match=f"is {state}.*prune --all"):
            prune_folder(tmp_path, 0.0)
        assert (tmp_path / "slab-00000").exists()
        remove_index(tmp_path)
    assert prune_folder(tmp_path, float("inf")) == (0, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"lock"}
