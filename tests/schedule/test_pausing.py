"""Who gives way when the device gets crowded all the same, and when it comes back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fixtures_schedule import counts, request, scheduler, step

from tokenvm.schedule.lengths import WARM, ExpectedLengths
from tokenvm.schedule.plan import FinishedEvent, Plan
from tokenvm.schedule.request import Status
from tokenvm.schedule.scheduler import Scheduler
from tokenvm.vocab import SeqId

LONG: dict[str, Any] = {"prompt": 16, "max_tokens": 200}


def add(schedule: Scheduler, name: str, **asked: Any) -> SeqId:
    (seq,) = schedule.add(request(name, **{**LONG, **asked}))
    return seq


def misled(**changed: Any) -> Scheduler:
    """A scheduler that has only seen answers of one token, where two hundred were allowed."""
    schedule = scheduler(**changed)
    for number in range(WARM):
        add(schedule, f"early{number}", prompt=1)
        step(schedule)
        schedule.abort("nobody")
        (seq,) = schedule.running
        schedule.stop(seq)
    return schedule


def run_until_pause(schedule: Scheduler) -> Plan:
    for _ in range(300):
        plan = schedule.plan()
        schedule.commit(plan, dict.fromkeys(plan.sampled, 7), {})
        if plan.pauses:
            return plan
    raise AssertionError("nobody was paused")


def test_the_last_admitted_gives_way_before_the_device_overflows() -> None:
    schedule = misled(device_slots=15)
    first, second, third = (add(schedule, name) for name in "abc")
    plan = run_until_pause(schedule)
    assert plan.pauses == (third,)
    assert counts(plan) == {first: 1, second: 1}
    assert schedule.running == (first, second)
    sequence = schedule.sequence(third)
    assert sequence.status is Status.PAUSED
    assert sequence.computed == 5 * 16, "three of five pages each fill the device"


def test_a_lower_priority_gives_way_to_who_came_later() -> None:
    schedule = misled(device_slots=15)
    low = add(schedule, "low", priority=1)
    step(schedule)
    add(schedule, "a")
    add(schedule, "b")
    assert run_until_pause(schedule).pauses == (low,)


def test_a_paused_one_comes_back_where_it_was_once_another_has_ended() -> None:
    schedule = misled(device_slots=29)
    first, second, third = (add(schedule, name) for name in "abc")
    run_until_pause(schedule)
    waiting = add(schedule, "late", prompt=1, max_tokens=1)
    computed, tokens = schedule.sequence(third).computed, list(schedule.sequence(third).tokens)
    resumed: list[Plan] = []
    for _ in range(400):
        plan = schedule.plan()
        if plan.resumes:
            resumed.append(plan)
            assert plan.resumes == (third,)
            assert schedule.sequence(third).tokens == tokens
            assert {span.seq: span.start for span in plan.spans}[third] == computed
        if not resumed:
            assert schedule.sequence(waiting).status is Status.WAITING, "it comes back before anybody new"
        schedule.commit(plan, dict.fromkeys(plan.sampled, 7), {})
        if not schedule.has_work:
            break
    assert len(resumed) == 1
    assert not schedule.has_work
    del first, second


def test_a_paused_one_can_be_aborted() -> None:
    schedule = misled(device_slots=15)
    for name in "abc":
        add(schedule, name)
    (third,) = run_until_pause(schedule).pauses
    assert schedule.abort("c") == [FinishedEvent("c", third, "abort")]
    before = schedule.most_pages
    schedule.abort("a")
    schedule.abort("b")
    assert before > 0
    assert (schedule.has_work, schedule.most_pages) == (False, 0)


def test_a_paused_one_may_lose_pages() -> None:
    schedule = misled(device_slots=15)
    for name in "abc":
        add(schedule, name)
    (third,) = run_until_pause(schedule).pauses
    step(schedule, lost={third: 32})
    assert schedule.sequence(third).computed == 32
    schedule.abort("a")
    schedule.abort("b")
    plan = schedule.plan()
    assert plan.resumes == (third,)
    assert plan.spans[0].start == 32
    assert plan.spans[0].samples


def test_one_that_outgrows_the_device_alone_streams() -> None:
    schedule = misled(device_slots=5)
    alone = add(schedule, "alone")
    for _ in range(150):
        plan = schedule.plan()
        assert plan.pauses == ()
        assert len(plan.spans) == 1
        schedule.commit(plan, dict.fromkeys(plan.sampled, 7), {})
    assert schedule.sequence(alone).computed > 5 * 16


def test_nobody_is_paused_without_lookahead() -> None:
    schedule = scheduler(device_slots=15, lookahead=False)
    for name in "abc":
        add(schedule, name)
    for _ in range(150):
        plan = schedule.plan()
        assert plan.pauses == ()
        assert len(plan.spans) == 3
        schedule.commit(plan, dict.fromkeys(plan.sampled, 7), {})


def test_nobody_is_paused_whose_open_page_has_no_room_below() -> None:
    """What an open page takes beside its own leaves the device as well."""
    pages = 3 * 14  # of three sequences at most
    for held, pauses in ((pages + 3, True), (pages, False)):
        schedule = misled(device_slots=18, open_slots=2, held_pages=held, lower_pages=held)
        for name in "abc":
            add(schedule, name)
        plans = []
        while schedule.has_work:
            plans.append(schedule.plan())
            schedule.commit(plans[-1], dict.fromkeys(plans[-1].sampled, 7), {})
        assert any(plan.pauses for plan in plans) is pauses


@pytest.mark.parametrize("slots", [9, 12, 15])
def test_nobody_goes_to_and_fro_and_nobody_starves(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer is longer than expected, for ever; each pause is followed by an end before the return."""
    monkeypatch.setattr(ExpectedLengths, "remaining", lambda _expected, _sequence: 1)
    schedule = scheduler(device_slots=slots, max_num_seqs=6)
    ended: list[str] = []
    paused: dict[SeqId, int] = {}
    pauses = arrived = 0
    for number in range(1500):
        if number % 20 == 0 and arrived < 60:
            add(schedule, f"r{arrived}", prompt=1 + number % 50, max_tokens=20 + number % 90)
            arrived += 1
        plan = schedule.plan()
        for seq in plan.pauses:
            paused[seq] = len(ended)
            pauses += 1
        for seq in plan.resumes:
            assert paused.pop(seq) < len(ended)
        decoding = [seq for seq in schedule.running if schedule.sequence(seq).decoding]
        assert {span.seq for span in plan.spans} >= set(decoding), "decoding never stalls"
        for event in schedule.commit(plan, dict.fromkeys(plan.sampled, 7), {}):
            if isinstance(event, FinishedEvent):
                ended.append(event.request_id)
    while schedule.has_work:
        ended += [event.request_id for event in step(schedule) if isinstance(event, FinishedEvent)]
    assert sorted(ended) == sorted(f"r{number}" for number in range(arrived))
    assert 0 < pauses <= 2 * len(ended)


def test_who_waits_for_pages_of_the_paused_does_not_keep_them_from_running() -> None:
    """A request of higher priority that needs nearly all pages waits; the others run on, as many as fit."""
    schedule = misled(device_slots=29, held_pages=60)
    first, second, third = (add(schedule, name, priority=1) for name in "abc")
    assert run_until_pause(schedule).pauses == (third,)
    urgent = add(schedule, "urgent", prompt=700, max_tokens=200)
    schedule.stop(first)
    plan = schedule.plan()
    assert plan.resumes == (third,)
    assert set(counts(plan)) == {second, third}
    assert schedule.sequence(urgent).status is Status.WAITING


def test_nobody_comes_back_where_every_place_is_taken() -> None:
    schedule = misled(device_slots=15)
    first, second, third = (add(schedule, name) for name in "abc")
    run_until_pause(schedule)
    admission = schedule._admission
    admission.resize(replace(schedule.limits, max_num_seqs=2))
    assert schedule.running == (first, second)
    assert admission.bring_back() == []
    assert schedule.running == (first, second)
    admission.resize(schedule.limits)
    assert [one.seq for one in admission.bring_back()] == [third]
