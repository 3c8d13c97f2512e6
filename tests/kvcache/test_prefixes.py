"""Prefixes on the device: who begins with what others computed, and who waits for whom."""

from __future__ import annotations

from pathlib import Path

import pytest
from kv_desk import BLOCK, desk, text

from tokenvm.vocab import Answer, SeqId, Tier


def test_a_prompt_begins_with_the_pages_of_one_before_it(tmp_path: Path) -> None:
    with desk(tmp_path, 8) as made:
        assert made.whole_life(0, text(0, 3.5)) == 0
        assert made.whole_life(1, text(0, 3.5)) == 3 * BLOCK
        assert made.whole_life(2, text(0, 2) + text(90, 2)) == 2 * BLOCK
        assert made.whole_life(3, text(0, 3)) == 2 * BLOCK, "the last token is computed always"
        assert made.whole_life(4, text(1, 3)) == 0
        assert made.kv.prefix_stats.hit_tokens[Tier.DEVICE] == 7 * BLOCK
        assert made.kv.prefix_stats.asked_tokens == (3.5 + 3.5 + 4 + 3 + 3) * BLOCK


def test_what_was_produced_after_the_prompt_is_found_too(tmp_path: Path) -> None:
    with desk(tmp_path, 8) as made:
        seq = made.announce(0, text(0, 1.5))
        made.begin(seq)
        made.prompts[seq] = text(0, 3.25)
        made.finish(seq)
        assert made.whole_life(1, text(0, 4)) == 3 * BLOCK


@pytest.mark.parametrize("announced", [False, True])
def test_a_salt_separates_and_created_sequences_share_nothing(announced: bool, tmp_path: Path) -> None:
    with desk(tmp_path, 9) as made:
        made.whole_life(0, text(0, 2.5))
        assert made.whole_life(1, text(0, 2.5), salt="mine") == 0
        assert made.whole_life(2, text(0, 2.5), salt="mine") == 2 * BLOCK
        seq = SeqId(3)
        if announced:
            made.announce(seq, text(60, 2.5))
        made.prompts[seq], made.tokens[seq] = text(60, 2.5), []
        made.kv.create(seq)
        made.finish(seq)
        assert made.whole_life(4, text(60, 2.5)) == 0


def test_nothing_is_kept_when_switched_off(tmp_path: Path) -> None:
    with desk(tmp_path, 8, caching=False) as made:
        made.whole_life(0, text(0, 3))
        assert made.vm.ledger.used(Tier.DEVICE) == 0
        assert made.whole_life(1, text(0, 3)) == 0


def test_many_who_arrive_together_compute_their_prefix_once(tmp_path: Path) -> None:
    with desk(tmp_path, 16) as made:
        waiting = [made.announce(name, text(0, 4) + text(50 + name, 0.5)) for name in range(5)]
        running: list[SeqId] = []
        while waiting or running:
            running += made.try_to_begin(*waiting)
            waiting = [seq for seq in waiting if seq not in running]
            made.run(*running)
            for seq in [seq for seq in running if made.tokens[seq] == made.prompts[seq]]:
                made.release(seq)
                running.remove(seq)
        assert made.computed_tokens == (4 + 5 * 0.5) * BLOCK


def test_who_shares_less_waits_less(tmp_path: Path) -> None:
    with desk(tmp_path, 16) as made:
        leader = made.announce(0, text(0, 5))
        follower = made.announce(1, text(0, 2) + text(50, 1))
        assert made.try_to_begin(leader, follower) == [leader]
        made.run(leader)
        assert made.try_to_begin(follower) == []
        made.run(leader)
        assert made.try_to_begin(follower) == [follower]
        assert made.kv.cached_tokens(follower) == 2 * BLOCK


@pytest.mark.parametrize("end", ["abort", "pause", "finish early"])
def test_nobody_waits_for_a_leader_that_does_not_run(end: str, tmp_path: Path) -> None:
    with desk(tmp_path, 16) as made:
        leader, follower = made.announce(0, text(0, 4)), made.announce(1, text(0, 4.5))
        assert made.try_to_begin(leader, follower) == [leader]
        made.run(leader)
        assert made.try_to_begin(follower) == []
        if end == "pause":
            made.follow(pauses=(leader,))
        elif end == "abort":
            made.release(leader)
        else:
            made.kv.truncate(leader, 0)
            made.release(leader)
        assert made.try_to_begin(follower) == [follower]
        made.finish(follower)


def test_a_leader_that_lost_its_pages_computes_them_again(tmp_path: Path) -> None:
    with desk(tmp_path, 16) as made:
        leader, follower = made.announce(0, text(0, 3)), made.announce(1, text(0, 3.5))
        made.try_to_begin(leader)
        made.run(leader)
        del made.tokens[leader][made.kv.truncate(leader, 0) :]
        assert made.try_to_begin(follower) == [], "one page is found, the leader will commit the next"
        made.run_out(leader)
        assert made.try_to_begin(follower) == [follower]
        assert made.kv.cached_tokens(follower) == 3 * BLOCK


def test_a_sequence_that_never_begins_does_not_hold_others_up(tmp_path: Path) -> None:
    """A scheduler may ask about the first again and again and have no room for it."""
    with desk(tmp_path, 16) as made:
        first, second = made.announce(0, text(0, 4)), made.announce(1, text(0, 4))
        answers = []
        for _ in range(5):
            assert made.kv.match(first).answer is Answer.HIT
            answers.append(made.kv.match(second).answer)
            made.follow()
        assert answers[0] is Answer.IN_FLIGHT
        assert answers[-1] is Answer.HIT


def test_pages_computed_twice_are_kept_once(tmp_path: Path) -> None:
    with desk(tmp_path, 16) as made:
        one, two = made.announce(0, text(0, 2.5)), made.announce(1, text(0, 2.5))
        made.try_to_begin(one)
        made.kv.pause(one)
        made.try_to_begin(two)
        made.kv.resume(one)
        made.run_out(one)
        made.run_out(two)
        made.release(one)
        assert made.vm.ledger.used(Tier.DEVICE) == 2 + 3
        made.release(two)
        assert made.vm.ledger.used(Tier.DEVICE) == 2


# Where pages lie
