"""Bytes written in a day, to the hour."""

from tokenvm.engine.wear import HOUR_S, Wear


def test_what_was_written_today_is_counted_and_no_more() -> None:
    wear, written = Wear(0.0), 0
    for hour in range(1, 80):
        written += 10
        assert wear.last_day_bytes(hour * HOUR_S, written) == 10 * min(hour, 24)


def test_a_long_silence_leaves_nothing() -> None:
    wear = Wear(0.0)
    assert wear.last_day_bytes(100.0, 5) == 5
    assert wear.last_day_bytes(HOUR_S, 7) == 7
    assert wear.last_day_bytes(30 * HOUR_S, 7) == 0
    assert wear.last_day_bytes(30 * HOUR_S + 1, 9) == 2


def test_many_questions_in_an_hour_keep_one_mark() -> None:
    wear = Wear(0.0)
    for second in range(5000):
        wear.last_day_bytes(float(second), second)
    assert len(wear._marks) == 2
