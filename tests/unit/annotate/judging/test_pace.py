"""The server's time of answers, and how fast they may come, on clocks that the tests set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from annotate.judging.pace import BURST_ANSWERS, CHANGE_COST, SECONDS_AN_ANSWER, Pace

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def answer(pace: Pace, arrived: float, *claims: tuple[float | None, float]) -> list[float | None]:
    """One request: (seconds at which its pair was handed out, seconds claimed) of each answer."""
    stopwatch = pace.start(at(arrived))
    taken = [
        stopwatch.take(None if out is None else at(out), claimed, is_last=place == len(claims) - 1)
        for place, (out, claimed) in enumerate(claims)
    ]
    pace.note(stopwatch, len(claims))
    return taken


def test_time_runs_from_the_handing_out_or_from_the_answer_before() -> None:
    pace = Pace()
    assert answer(pace, 10, (3, 5.0)) == [7.0]
    assert answer(pace, 14, (3, 3.0)) == [4.0], "handed out ahead: seen after the answer before it"
    assert answer(pace, 20, (18, 1.0)) == [2.0]
    assert answer(pace, 26, (None, 1.0)) == [6.0], "its lease is gone"
    assert answer(pace, 25, (3, 1.0)) == [0.0], "never below nothing, as after the clock was set back"
    assert answer(Pace(), 25, (None, 1.0)) == [None]


def test_answers_that_waited_for_a_network_share_the_time_and_what_they_claim_fits() -> None:
    pace = Pace()
    answer(pace, 0, (-9, 4.0))
    taken = answer(pace, 60, (-9, 10.0), (-8, 15.0), (-7, 5.0), (-6, 20.0))
    assert taken == [10.0, 15.0, 5.0, 30.0]
    assert answer(pace, 63, (-5, 2.0)) == [3.0]


def test_claims_of_more_than_passed_do_not_fit() -> None:
    pace = Pace()
    answer(pace, 0, (-9, 4.0))
    assert answer(pace, 18, *[(-9, 7.3)] * 600)[:4] == pytest.approx([7.3, 7.3, 3.4, 0.0])


def test_people_may_run_ahead_by_a_burst_and_are_then_held_to_the_pace() -> None:
    pace = Pace()
    for number in range(BURST_ANSWERS + 1):
        assert pace.wait(at(0)) == 0, number
        answer(pace, 0, (None, 1.0))
    assert pace.wait(at(0)) == 1
    assert pace.wait(at(SECONDS_AN_ANSWER)) == 0


def test_a_fast_person_never_waits() -> None:
    """An answer with a reason a second for an hour, and now and then ten more in three seconds, each undone."""
    pace = Pace()
    for number in range(3600):
        assert pace.wait(at(number)) == 0
        answer(pace, number, (None, 0.9))
        pace.note(pace.start(at(number)), 1)  # a reason
        if number % 100 == 0:
            for _ in range(10):
                answer(pace, number, (None, 0.3))
                pace.note(pace.start(at(number)), 1)  # an undo


def test_a_backlog_of_any_length_is_taken_whole_and_waited_for_afterwards() -> None:
    pace = Pace()
    answer(pace, 0, *[(None, 5.0)] * 500)
    assert pace.wait(at(0)) == (500 - BURST_ANSWERS) * SECONDS_AN_ANSWER
    assert pace.wait(at(pace.wait(at(0)))) == 0, "and so is the next one"


def test_changes_cost_less_than_answers_but_cost() -> None:
    pace = Pace()
    for _ in range(int(BURST_ANSWERS / CHANGE_COST)):
        assert pace.wait(START) == 0
        pace.note(pace.start(START), 1)
    pace.note(pace.start(START), 4)
    assert pace.wait(START) == 1


def test_nobody_waits_for_a_clock_that_was_set_back() -> None:
    pace = Pace()
    answer(pace, 7200, *[(None, 5.0)] * 500)
    assert pace.wait(at(7200)) > 0
    assert pace.wait(at(0)) == 0
    answer(pace, 0, *[(None, 5.0)] * 500)
    assert pace.wait(at(0)) == (500 - BURST_ANSWERS) * SECONDS_AN_ANSWER, "and the pace is kept from there on"
