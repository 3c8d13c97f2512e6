"""When the tiers hold less than before: who begins again, and that everybody is answered in the end."""

from __future__ import annotations

import random

import pytest
from fixtures_schedule import request, scheduler, step

from tokenvm.schedule.plan import FinishedEvent, TokenEvent
from tokenvm.schedule.request import Status
from tokenvm.schedule.scheduler import Scheduler


def crowd(**changed: int | bool) -> Scheduler:
    """Four sequences of at most four pages each run, on six slots of device and sixteen below."""
    sizes = {"device_slots": 6, "held_pages": 16, "lower_pages": 16, "lookahead": False}
    schedule = scheduler(**{**sizes, **changed})
    for name in "abcd":
        schedule.add(request(name, prompt=40, max_tokens=20))
    for _ in range(3):
        step(schedule)
    assert len(schedule.running) == 4
    return schedule


def test_the_last_are_set_back_and_keep_their_tokens() -> None:
    schedule = crowd()
    while schedule.sequence(3).new_tokens < 2:
        step(schedule)
    tokens = {seq: list(schedule.sequence(seq).tokens) for seq in range(4)}
    assert schedule.resize(9) == [2, 3], "two of four pages each fit in nine"
    assert schedule.running == (0, 1)
    for seq in (2, 3):
        sequence = schedule.sequence(seq)
        assert (sequence.status, sequence.computed, sequence.begun) == (Status.WAITING, 0, False)
        assert sequence.tokens == tokens[seq]
    assert schedule.resize(9) == []


def test_the_first_is_never_set_back() -> None:
    schedule = crowd()
    assert schedule.resize(0) == [1, 2, 3]
    assert schedule.running == (0,)
    assert schedule.set_back_last() == []


def test_one_after_another_gives_way() -> None:
    schedule = crowd()
    assert [schedule.set_back_last() for _ in range(4)] == [[3], [2], [1], []]


def test_tiers_never_hold_more_than_they_did_at_first() -> None:
    schedule = crowd()
    schedule.resize(1000)
    assert schedule.limits.held_pages == 16


def test_a_request_too_large_for_what_is_left_is_taken_and_waits() -> None:
    schedule = crowd()
    schedule.resize(5)
    schedule.add(request("large", prompt=100, max_tokens=20))
    assert not schedule.fits("large")
    assert schedule.fits("a")
    for _ in range(400):
        if not schedule.has_work:
            break
        step(schedule)
    assert not schedule.has_work, "alone it goes as far as it can"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("lookahead", [False, True])
def test_everybody_is_answered_however_the_tiers_come_and_go(seed: int, lookahead: bool) -> None:
    chance = random.Random(seed)
    schedule = scheduler(device_slots=8, held_pages=30, lower_pages=30, lookahead=lookahead)
    said: dict[str, int] = {}
    for number in range(20):
        schedule.add(request(f"r{number}", prompt=chance.randint(1, 90), max_tokens=chance.randint(1, 30)))
    for turn in range(3000):
        if not schedule.has_work:
            break
        if chance.random() < 0.2:
            schedule.resize(chance.choice([0, 3, 9, 20, 30]))
        if chance.random() < 0.05:
            schedule.set_back_last()
        if turn % 97 == 0:
            assert sorted(schedule.restart()) == sorted(schedule._sequences)
        plan = schedule.plan()
        for event in schedule.commit(plan, dict.fromkeys(plan.sampled, 7), {}):
            if isinstance(event, TokenEvent):
                assert event.index == said.get(event.request_id, 0), "no token twice, none left out"
                said[event.request_id] = event.index + 1
            else:
                assert isinstance(event, FinishedEvent)
        owners = schedule._admission.owners()
        promised = sum(one.most_pages for one in owners)
        assert len(owners) <= 1 or promised <= schedule.limits.most_pages(len(owners))
    assert not schedule.has_work
    assert len(said) == 20
