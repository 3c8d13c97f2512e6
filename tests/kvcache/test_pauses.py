"""Pause and resume: every page may leave, every byte comes back, and what does not is computed again."""

from __future__ import annotations

from pathlib import Path

import pytest
from kv_desk import BLOCK, Desk, desk, text

from tokenvm.errors import StorageError
from tokenvm.memory.backend import Kind
from tokenvm.vocab import SeqId, Tier


def begun(made: Desk, name: int, tokens: list[int], count: float) -> SeqId:
    """A sequence that has computed so many pages of its prompt."""
    seq = made.announce(name, tokens)
    made.begin(seq)
    while len(made.tokens[seq]) < count * BLOCK:
        made.run(seq, count=min(BLOCK, int(count * BLOCK) - len(made.tokens[seq])))
    return seq


def on_device(made: Desk, seq: SeqId) -> int:
    return sum(made.vm.ledger.resident(unit, Tier.DEVICE) for unit in made.kv._table.pages(seq))


@pytest.mark.parametrize("pages", [1, 1.25, 2.5, 3])
@pytest.mark.parametrize(("host", "disk"), [(8, 0), (0, 8), (2, 6)])
def test_all_of_a_paused_sequence_may_leave_the_device(
    pages: float, host: int, disk: int, tmp_path: Path
) -> None:
    with desk(tmp_path, 4, host, disk) as made:
        seq = begun(made, 0, text(0, 3.75), pages)
        made.follow(pauses=(seq,))
        other = begun(made, 1, text(50, 4), 4)
        assert on_device(made, seq) == 0
        made.release(other)
        made.follow(resumes=(seq,))
        assert made.kv._table.open_page(seq) == [] or on_device(made, seq) >= 1
        made.run_out(seq)
        assert made.tokens[seq] == text(0, 3.75)


def test_it_goes_on_where_it_was_if_nothing_had_to_leave(tmp_path: Path) -> None:
    with desk(tmp_path, 8, disk=8) as made:
        seq = begun(made, 0, text(0, 4), 1.25)
        for _ in range(3):
            made.kv.pause(seq)
            made.kv.pause(seq)
            made.kv.resume(seq)
            made.kv.resume(seq)
            assert not made.vm.ledger.lowered(made.kv._table.open_page(seq)[0]), "it will be written to"
            made.run(seq, count=1)
        made.run_out(seq)


def test_who_has_not_begun_has_nothing_to_pause(tmp_path: Path) -> None:
    with desk(tmp_path, 4) as made:
        seq = made.announce(0, text(0, 1.5))
        made.follow(pauses=(seq,))
        made.follow(resumes=(seq,))
        made.begin(seq)
        made.run_out(seq)


def test_staging_resumes_whom_nobody_resumed(tmp_path: Path) -> None:
    with desk(tmp_path, 4, disk=8) as made:
        seq = begun(made, 0, text(0, 2.5), 1.5)
        made.kv.pause(seq)
        made.release(begun(made, 1, text(50, 4), 4))
        made.run_out(seq)


def test_a_sequence_that_finds_no_room_rests_on(tmp_path: Path) -> None:
    with desk(tmp_path, 2, disk=2) as made:
        seq = begun(made, 0, text(0, 0.75), 0.5)
        made.kv.pause(seq)
        others = [begun(made, 1, text(50, 0.5), 0.5), begun(made, 2, text(60, 0.5), 0.5)]
        with pytest.raises(StorageError, match="in use"):
            made.follow(resumes=(seq,))
        made.kv.check()
        made.release(others[0])
        made.run_out(seq)


def test_tokens_that_were_never_committed_are_forgotten(tmp_path: Path) -> None:
    with desk(tmp_path, 4, disk=8) as made:
        seq = begun(made, 0, text(0, 2.5), 1)
        made.spills = True
        with pytest.raises(KeyError):
            made.run_and_die(seq)
        made.kv.pause(seq)
        assert len(made.kv._table.pages(seq)) == 1
        made.run_out(seq)


def test_an_open_page_that_does_not_come_back_is_lost_and_computed_again(tmp_path: Path) -> None:
    with desk(tmp_path, 3, disk=8) as made:
        seq = begun(made, 0, text(0, 2.75), 1.5)
        made.kv.pause(seq)
        made.release(begun(made, 1, text(50, 3), 3))
        failing = [True]
        made.device.fail_when(lambda copy: failing[0] and copy.kind is Kind.READ)
        made.follow(resumes=(seq,))
        failing[0] = False
        assert made.run(seq, count=1) == {seq: BLOCK}
        assert made.tokens[seq] == text(0, 1)
        made.run_out(seq)


def test_a_page_that_cannot_be_written_stays(tmp_path: Path) -> None:
    with desk(tmp_path, 3, disk=8) as made:
        seq = begun(made, 0, text(0, 2.75), 1.5)
        failing = [True]
        made.device.fail_when(lambda copy: failing[0] and copy.kind is Kind.WRITE)
        made.kv.pause(seq)
        made.vm.finish_transfers()
        assert on_device(made, seq) == 2
        other = begun(made, 1, text(50, 1), 1)
        with pytest.raises(StorageError, match="cannot be written"):
            made.vm.make_room(3, [made.kv._table.pages(other)])
        failing[0] = False
        made.kv.resume(seq)
        made.run_out(seq)


def test_a_paused_sequence_hears_of_its_losses(tmp_path: Path) -> None:
    """Two share a page; the one that runs finds it damaged."""
    with desk(tmp_path, 3, disk=12) as made:
        made.spills = True
        made.whole_life(0, text(0, 2.5))
        one = begun(made, 1, text(0, 2.5), 2.25)
        two = begun(made, 2, text(0, 2) + text(70, 1), 2.25)
        made.kv.pause(one)
        made.vm.make_room(2, [])
        failing = [True]
        made.device.fail_when(lambda copy: failing[0] and copy.kind is Kind.READ)
        lost = made.run(two, count=1)
        failing[0] = False
        assert set(lost) == {one, two}
        made.run_out(two)
        made.release(two)
        made.kv.resume(one)
        made.run_out(one)


def test_a_paused_sequence_may_end_and_fork(tmp_path: Path) -> None:
    with desk(tmp_path, 4, disk=12) as made:
        one, two = begun(made, 0, text(0, 1.75), 1.5), begun(made, 1, text(50, 1.75), 1.5)
        made.follow(pauses=(one, two))
        made.release(one)
        child = SeqId(9)
        made.kv.fork(two, child)
        made.tokens[child], made.prompts[child] = list(made.tokens[two]), text(50, 1.75)
        made.run(two, child)


def test_paused_pages_leave_under_a_policy_that_ranks_none(tmp_path: Path) -> None:
    with desk(tmp_path, 4, disk=12, policy="none") as made:
        resting = [begun(made, name, text(20 * name, 1.75), 1.5) for name in range(2)]
        made.follow(pauses=tuple(resting))
        for name in range(2, 5):
            begun(made, name, text(20 * name, 0.5), 0.25)
        made.run(SeqId(2), SeqId(3), SeqId(4), count=1)
        for name in range(2, 5):
            made.release(SeqId(name))
        for seq in resting:
            made.run_out(seq)
