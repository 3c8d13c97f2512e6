"""Pages that outlive their store: what is found again, what is not, and why."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from kept_pages import (
    THEIRS,
    dead,
    found,
    key_of,
    losses,
    on_disk_bytes,
    opened,
    put,
    put_chain,
)

from tokenvm.memory.kept_disk import KeptDiskStore
from tokenvm.memory.kept_size import limit_for
from tokenvm.memory.page_format import Geometry
from tokenvm.vocab import SlotId


@pytest.mark.parametrize("orderly", [True, False])
@pytest.mark.parametrize("flush", [True, False])
def test_what_was_remembered_is_found_heads_first(tmp_path: Path, orderly: bool, flush: bool) -> None:
    store = opened(tmp_path, flush=flush)
    put_chain(store, 5)
    store.register.flush()
    assert store.register.as_dict()["flushed_pages"] == (5 if flush else 0)
    (KeptDiskStore.close if orderly else dead)(store)
    again = opened(tmp_path)
    assert found(again) == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5}
    assert [page.key for page in again.register.found] == [key_of(page) for page in range(1, 6)]
    assert [again.register.found[at].key[0] for at in again.register.idle_order] == [5, 4, 3, 2, 1], (
        "tails go first"
    )
    assert losses(again) == {}
    again.close()


def test_what_was_forgotten_or_replaced_is_not_found(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put_chain(store, 4)
    store.register.forget([SlotId(3), SlotId(7)])
    put(store, 2, 9, parent=2)
    dead(store)
    again = opened(tmp_path)
    assert found(again) == {0: 1, 1: 2, 2: 9}
    again.close()


def test_a_page_behind_one_that_is_gone_is_an_orphan(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put_chain(store, 5)
    store.register.forget([SlotId(2)])
    dead(store)
    again = opened(tmp_path)
    assert found(again) == {0: 1, 1: 2}
    assert losses(again) == {"orphan_pages": 2}
    again.close()
    third = opened(tmp_path)
    assert losses(third) == {}, "they were reclaimed"
    third.close()


def test_the_index_goes_on_over_many_checkpoints(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for turn in range(160):
        put(store, turn % 8, 1 + turn)
        if turn % 5 == 0:
            store.register.flush()
    dead(store)
    assert store._files is not None
    assert store._files.checkpoints > 1
    again = opened(tmp_path)
    assert found(again) == {turn % 8: 1 + turn for turn in range(152, 160)}
    again.close()


def test_order_of_giving_up_survives(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for page in (1, 2, 3):
        put(store, page, page)
    store.register.close([SlotId(3), SlotId(1), SlotId(2)])
    store.close()
    again = opened(tmp_path)
    assert [again.register.found[at].key[0] for at in again.register.idle_order] == [3, 1, 2]
    again.close()


def test_another_model_finds_nothing_and_its_pages_take_the_room(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put_chain(store, 4)
    store.close()
    other = opened(tmp_path, fingerprint=THEIRS)
    assert other.register.found == []
    assert losses(other) == {"foreign_pages": 4}
    put(other, 0, 7)
    other.close()
    back = opened(tmp_path)
    assert back.register.found == []
    back.close()


def test_another_geometry_or_version_is_reclaimed_whole(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put_chain(store, 4)
    store.close()
    head = (tmp_path / "index-0").read_bytes()[:4096]
    assert head[:8] == b"TVMPAGES" or (tmp_path / "index-1").read_bytes()[:8] == b"TVMPAGES"
    keep = store._keep
    from tokenvm.memory.layout import PageLayout

    other_layout = PageLayout(layers=2, part_bytes=4096)
    limit = limit_for(8, Geometry(2, 4096, 4096, "none"))
    other = KeptDiskStore(tmp_path, limit, other_layout, keep, direct=False)
    assert losses(other) == {"foreign_pages": 4}
    assert on_disk_bytes(tmp_path) <= limit
    other.close()


def test_pages_that_are_too_old_are_not_found(tmp_path: Path) -> None:
    now = [1000.0]
    store = opened(tmp_path, now_s=lambda: now[0])
    put(store, 0, 1)
    now[0] = 1050.0
    put(store, 1, 2, parent=1)
    put(store, 2, 3)
    store.close()
    now[0] = 1105.0
    again = opened(tmp_path, ttl_s=100.0, now_s=lambda: now[0])
    assert found(again) == {2: 3}
    assert losses(again) == {"expired_pages": 1, "orphan_pages": 1}
    assert again.register.expired_before() == 1005.0
    again.close()


@pytest.mark.parametrize("harm", ["missing", "short", "long", "link", "folder-wide"])
def test_a_slab_that_is_not_whole_holds_no_pages(tmp_path: Path, harm: str) -> None:
    store = opened(tmp_path)
    put_chain(store, 4)
    put(store, 5, 9)
    store.close()
    slab = tmp_path / "slab-00001"
    size = slab.stat().st_size
    if harm == "missing":
        slab.unlink()
    elif harm == "link":
        slab.rename(tmp_path / "aside")
        slab.symlink_to(tmp_path / "aside")
    elif harm == "folder-wide":
        (tmp_path / "slab-00007").write_bytes(bytes(100))
        (tmp_path / "other").write_bytes(b"not ours")
        slab.unlink()
    else:
        os.truncate(slab, size - 1 if harm == "short" else size + 4096)
    again = opened(tmp_path)
    assert found(again) == {0: 1, 1: 2, 2: 3, 3: 4}
    assert losses(again) == {"missing_pages": 1}
    put(again, 5, 8)
    again.close()
    assert not (tmp_path / "slab-00007").exists()
    assert (tmp_path / "other").exists() == (harm == "folder-wide"), "what is not ours is left alone"
    third = opened(tmp_path)
    assert found(third)[5] == 8
    third.close()


def test_a_damaged_head_falls_back_and_two_start_anew(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put_chain(store, 3)
    dead(store)
    current = max(("index-0", "index-1"), key=lambda name: (tmp_path / name).read_bytes()[48:56])
    flip(tmp_path / current, 48)
    again = opened(tmp_path)
    assert set(found(again)) <= {0, 1, 2}, "older, never wrong"
    put_chain(again, 3)
    again.close()
    for name in ("index-0", "index-1"):
        (tmp_path / name).write_bytes(b"x" * 5000)
    third = opened(tmp_path)
    assert third.register.found == []
    assert losses(third)["damaged_records"] == 1
    put(third, 0, 5)
    third.close()
    fourth = opened(tmp_path)
    assert found(fourth) == {0: 5}
    fourth.close()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_ten_thousand_pages_are_read_as_one_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, at, n: os.ftruncate(fd, n))
    store = opened(tmp_path, pages=10_000, slab_pages=10_000)
    store.ensure(1)
    parent = b""
    rng = np.random.default_rng(0)
    for slot in range(10_000):
        key = rng.bytes(16)
        store.register.remember(SlotId(slot), key, parent if slot % 100 else b"")
        parent = key
    store.close()
    again = opened(tmp_path, pages=10_000, slab_pages=10_000)
    assert len(again.register.found) == 10_000
    assert losses(again) == {}
    again.close()
