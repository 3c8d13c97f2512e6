"""A tier is switched off after repeated failures, rests longer each time, and comes back after a trial."""

import pytest

from tokenvm.residency.health import (
    IN_A_ROW,
    MOST_IN_WINDOW,
    MOST_REST_S,
    REST_S,
    WINDOW,
    Condition,
    Health,
)


def failing(health: Health, times: int, now_s: float = 0.0) -> Condition:
    for _ in range(times):
        health.hear_failure(now_s)
    return health.condition


def test_failures_in_a_row_switch_it_off() -> None:
    health = Health()
    assert failing(health, IN_A_ROW - 1) is Condition.ON
    health.hear_good(1)
    assert failing(health, IN_A_ROW - 1) is Condition.ON
    assert failing(health, 1) is Condition.OFF
    assert health.switched_off == 1


@pytest.mark.parametrize("good", [1, 2, 5])
def test_a_large_part_of_failures_switches_it_off(good: int) -> None:
    """Every so many pages fail: off exactly where the last WINDOW hold too many."""
    health, heard = Health(), 0
    while health.condition is Condition.ON and heard < 20 * WINDOW:
        health.hear_good(good)
        health.hear_failure(0.0)
        heard += good + 1
    assert (health.condition is Condition.OFF) == (WINDOW / (good + 1) >= MOST_IN_WINDOW)


def test_rare_failures_never_do() -> None:
    health = Health()
    for _ in range(1000):
        health.hear_good(3)
        assert health.hear_failure(0.0) is Condition.ON


def test_each_rest_is_twice_as_long_until_it_fares_well_again() -> None:
    health, now_s, rests = Health(), 0.0, []
    failing(health, IN_A_ROW, now_s)
    for _ in range(9):
        begun_s = now_s
        while health.tick(now_s) is Condition.OFF:
            now_s += 0.5
        rests.append(now_s - begun_s)
        health.tried(passed=False, now_s=now_s)
    assert rests == [min(MOST_REST_S, REST_S * 2**turn) for turn in range(9)]
    now_s += MOST_REST_S
    assert health.tick(now_s) is Condition.TRIAL
    health.tried(passed=True, now_s=now_s)
    assert health.condition is Condition.ON
    health.hear_good(WINDOW)
    failing(health, IN_A_ROW, now_s)
    assert health.until_s == now_s + REST_S


def test_a_passed_trial_does_not_shorten_the_next_rest() -> None:
    """Who fails again at once has not recovered."""
    health = Health()
    failing(health, IN_A_ROW, 0.0)
    health.tick(REST_S)
    health.tried(passed=True, now_s=REST_S)
    failing(health, IN_A_ROW, REST_S)
    assert health.until_s == REST_S + 2 * REST_S


def test_nothing_is_heard_while_it_rests() -> None:
    health = Health()
    failing(health, 3 * IN_A_ROW)
    assert health.switched_off == 1
    assert health.tick(REST_S / 2) is Condition.OFF
    assert health.tick(REST_S) is Condition.TRIAL
    assert failing(health, 3 * IN_A_ROW) is Condition.TRIAL
