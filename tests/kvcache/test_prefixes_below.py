"""Prefixes in other tiers: what comes to the device for them, and what is given up when room is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from kv_desk import BLOCK, LAYERS, LAYOUT, Desk, desk, text

from tokenvm.errors import StorageError
from tokenvm.memory.backend import Kind
from tokenvm.residency.prefix_plan import Rates
from tokenvm.vocab import Tier


def push_down(made: Desk, pages: int) -> None:
    """Let all kept pages leave the device."""
    made.kv.vm.make_room(pages, [])
    assert made.kept(Tier.DEVICE) == []


def test_a_prefix_below_comes_to_the_device_while_its_sequence_waits(tmp_path: Path) -> None:
    with desk(tmp_path, 6, disk=20) as made:
        made.whole_life(0, text(0, 3.5))
        push_down(made, 6)
        seq = made.announce(1, text(0, 3.5))
        assert made.begin(seq) > 1
        assert len(made.kept(Tier.DEVICE)) == 3
        assert made.kv.prefix_stats.hit_tokens[Tier.DISK] == 3 * BLOCK
        made.run(seq)


@pytest.mark.parametrize("written", [False, True])
def test_idle_pages_leave_for_it(written: bool, tmp_path: Path) -> None:
    """Those that have a copy below at once, the others once they have been written."""
    with desk(tmp_path, 6, host=3, disk=20) as made:
        made.whole_life(0, text(0, 3.5))
        push_down(made, 6)
        made.whole_life(1, text(50, 5.5))
        if written:
            made.vm.write_behind([made.kept(Tier.DEVICE)])
            made.vm.finish_transfers()
        seq = made.announce(2, text(0, 3.5))
        made.begin(seq)
        assert all(made.vm.ledger.resident(unit, Tier.DEVICE) for unit in made.kv._table.pages(seq))
        made.finish(seq)


def test_running_pages_do_not_leave_for_it(tmp_path: Path) -> None:
    """Then it begins at once, and its pages are streamed."""
    with desk(tmp_path, 4, disk=20) as made:
        made.whole_life(0, text(0, 3.5))
        push_down(made, 4)
        running = made.announce(1, text(50, 3.25))
        made.begin(running)
        made.run_out(running)
        seq = made.announce(2, text(0, 3.5))
        assert made.begin(seq) == 1
        assert made.kv.prefix_stats.hit_tokens[Tier.DISK] == 3 * BLOCK
        made.finish(seq)


def test_pages_that_do_not_arrive_hold_nobody_up(tmp_path: Path) -> None:
    with desk(tmp_path, 6, disk=20) as made:
        made.whole_life(0, text(0, 3.5))
        push_down(made, 6)
        seq = made.announce(1, text(0, 3.5))
        failing = [True]
        made.device.fail_when(lambda copy: failing[0] and copy.kind is Kind.READ)
        made.begin(seq)
        failing[0] = False
        made.finish(seq)


def test_pages_that_are_computed_sooner_than_read_are_not_found(tmp_path: Path) -> None:
    with desk(tmp_path, 6, disk=20) as made:
        made.whole_life(0, text(0, 3.5))
        push_down(made, 6)
        read = 1.0 * LAYOUT.page_bytes
        made.kv.rates = Rates(read, 2.0 * BLOCK)
        assert made.whole_life(1, text(0, 3.5)) == 0
        made.kv.rates = Rates(read, 0.5 * BLOCK)
        made.whole_life(2, text(0, 3.5))
        push_down(made, 6)
        assert made.whole_life(3, text(0, 3.5)) == 3 * BLOCK


def test_a_lost_page_is_no_prefix_any_more(tmp_path: Path) -> None:
    with desk(tmp_path, 3, disk=20) as made:
        made.spills = True
        made.whole_life(0, text(0, 4.5))
        push_down(made, 3)
        seq = made.announce(1, text(0, 4.5))
        made.kv.match(seq)
        second = made.kv._prefixes._prompts[seq].found[1]
        failing = [True]
        where = made.vm._stores[Tier.DISK].places(made.vm.ledger.slot(second, Tier.DISK), 0).place
        made.device.fail_when(
            lambda copy: failing[0] and copy.kind is Kind.READ and copy.source.begin == int(where)
        )
        made.begin(seq)
        assert made.run(seq) == {seq: BLOCK}
        assert len(made.vm.index) == 1
        failing[0] = False
        made.finish(seq)
        assert made.whole_life(2, text(0, 4.5)) == 4 * BLOCK


# Room


@pytest.mark.parametrize("policy", ["lru", "none"])
@pytest.mark.parametrize(("host", "disk"), [(0, 0), (2, 0), (0, 3), (2, 3)])
def test_kept_pages_never_keep_a_sequence_from_running(
    policy: str, host: int, disk: int, tmp_path: Path
) -> None:
    with desk(tmp_path, 4, host, disk, policy=policy) as made:
        for name in range(12):
            made.spills = name % 2 == 1
            made.whole_life(name, text(10 * name, 3.75))
        assert made.vm.room.reclaimed_pages > 0


def test_the_device_alone_is_enough_for_sequences_that_fit(tmp_path: Path) -> None:
    with desk(tmp_path, 4) as made:
        seq = made.announce(0, text(0, 4))
        made.begin(seq)
        made.run_out(seq)
        other = made.announce(1, text(50, 1))
        made.begin(other)
        with pytest.raises(StorageError, match="in use"):
            made.run(other)


def test_what_was_used_last_is_kept_and_tails_go_first(tmp_path: Path) -> None:
    with desk(tmp_path, 8) as made:
        made.whole_life(0, text(0, 3.5))
        made.whole_life(1, text(50, 3.5))
        made.whole_life(2, text(0, 3.5))
        made.whole_life(3, text(100, 3.5))
        assert made.vm.room.reclaimed_pages == 2
        assert made.kv._prefixes is not None
        assert made.whole_life(4, text(50, 1.5)) == BLOCK, "the head of the prefix that was used longest ago"
        assert made.whole_life(5, text(0, 3.5)) == 3 * BLOCK


def test_old_pages_below_go_before_young_ones_on_the_device(tmp_path: Path) -> None:
    with desk(tmp_path, 4, disk=3) as made:
        made.whole_life(0, text(0, 3.5))
        push_down(made, 4)
        made.whole_life(1, text(50, 3.5))
        push_down(made, 4)
        assert made.vm.room.reclaimed_pages == 3
        assert made.whole_life(2, text(50, 3.5)) == 3 * BLOCK


def test_idle_pages_are_written_behind_once_the_device_is_crowded(tmp_path: Path) -> None:
    with desk(tmp_path, 8, disk=20) as made:
        made.whole_life(0, text(0, 3.5))
        made.vm.finish_transfers()
        assert made.vm.ledger.used(Tier.DISK) == 0
        seq = made.announce(1, text(50, 4.5))
        made.begin(seq)
        made.run_out(seq)
        made.vm.finish_transfers()
        assert made.vm.ledger.used(Tier.DISK) == 3, "those that nobody runs"


def test_older_pages_below_make_room_before_it_is_needed(tmp_path: Path) -> None:
    """With tiers full of idle pages, no sequence waits for a write: what leaves next has been written."""
    with desk(tmp_path, 5, disk=4) as made:
        urgent = []
        start = made.vm._transfers.submit
        made.vm._transfers.submit = lambda moves, now=False: (urgent.extend(moves * now), start(moves, now))[
            1
        ]  # type: ignore
        for name in range(10):
            made.whole_life(name, text(10 * name, 3.5))
            made.vm.finish_transfers()
        assert made.vm.ledger.free(Tier.DISK) == 0
        del urgent[:]
        for name in range(10, 16):
            made.whole_life(name, text(10 * name, 3.5))
            made.vm.finish_transfers()
        assert not urgent
        assert made.whole_life(20, text(140, 3.5)) == 3 * BLOCK


def test_running_pages_come_back_in_the_place_of_idle_ones(tmp_path: Path) -> None:
    with desk(tmp_path, 6, disk=30) as made:
        made.spills = True
        seq = made.announce(0, text(0, 5.25))
        made.begin(seq)
        made.run_out(seq)
        made.prompts[seq] += text(0, 0.75)
        push = made.announce(1, text(50, 3.5))
        made.begin(push)
        made.finish(push)
        streamed = []
        for _ in range(3):
            made.run(seq, count=1)
            made.vm.finish_transfers()
            streamed.append(
                sum(not made.vm.ledger.resident(u, Tier.DEVICE) for u in made.kv._table.pages(seq))
            )
        assert streamed[-1] == 0


def test_pages_in_a_tier_that_takes_none_are_not_let_go_of(tmp_path: Path) -> None:
    with desk(tmp_path, 4, disk=8) as made:
        made.whole_life(0, text(0, 3.5))
        push_down(made, 4)
        pool = made.vm.ledger.pool(Tier.DISK)
        pool.closed = True
        assert not made.vm.room.make_below(1)
        made.vm.room.make_on_disk(8)
        made.whole_life(1, text(50, 3.5))
        made.whole_life(2, text(100, 3.5))
        assert len(made.kept(Tier.DISK)) == 3
        pool.closed = False
        assert made.whole_life(3, text(0, 3.5)) == 3 * BLOCK


def test_a_copy_that_is_damaged_in_two_layers_costs_itself_alone(tmp_path: Path) -> None:
    with desk(tmp_path, 3, host=8, disk=8) as made:
        made.spills = True
        made.whole_life(0, text(0, 4.5))
        push_down(made, 3)
        made.vm.finish_transfers()
        seq = made.announce(1, text(0, 4.5))
        made.kv.match(seq)
        second = made.kv._prefixes._prompts[seq].found[1]
        made.vm._moves.start([made.vm.ledger.begin(second, Tier.HOST, Tier.DISK)])
        made.vm.finish_transfers()
        slot = made.vm.ledger.slot(second, Tier.HOST)
        places = {int(made.vm._stores[Tier.HOST].places(slot, layer).place) for layer in range(LAYERS)}
        failed = []
        made.device.fail_when(
            lambda copy: copy.kind is Kind.COPY_IN and copy.place in places and not failed.append(copy.place)
        )
        made.begin(seq)
        assert made.run(seq) == {seq: BLOCK}
        assert len(set(failed)) > 1
        assert not made.vm.ledger.resident(second, Tier.HOST)
        assert made.vm.ledger.resident(second, Tier.DISK)
        made.finish(seq)
