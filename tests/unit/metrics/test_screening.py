"""Screening by hand-worked likelihoods and rules, and planted people who click without looking."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from experiments.screening import ASKED, KINDS, count_found
from metrics.screening import (
    ATTENTION,
    KEYS,
    TIME,
    Fault,
    combine,
    find_limit,
    honest_share,
    screen_people,
)


def make_checks(people: list[str], **counts: list[float]) -> pd.DataFrame:
    """What `screen_people` takes of each person; nothing was checked but what is given."""
    names = ("judgments", "gold", "gold_right", "repeats", "repeats_same", "fast", "timed", "overclaimed")
    usual = dict.fromkeys((*names, "claimed_seconds", "server_seconds"), 0.0) | {"fast_seconds": 0.4}
    return pd.DataFrame({**{name: [value] * len(people) for name, value in usual.items()}, **counts}, index=people)


def make_answers(wins: dict[str, tuple[int, int]], ranking: tuple[str, str] = ("a>b", "b>a")) -> pd.DataFrame:
    """Of each person so many answers for method x and so many for y, the places by turns."""
    rows = [
        {"person": person, "source": f"s{n}", "methods": ("x", "y"), "ranking": said, "places": "ab" if n % 2 else "ba"}
        for person, (for_x, for_y) in wins.items()
        for n, said in enumerate([ranking[0]] * for_x + [ranking[1]] * for_y)
    ]
    return pd.DataFrame(rows)


def test_likelihood_under_the_scale_of_the_others_by_hand() -> None:
    """Four people say x three times in four, so often that the prior's ties do not count; a fifth half the time."""
    people = dict.fromkeys(("ann", "ben", "cleo", "dan"), (3000, 1000)) | {"eve": (2000, 2000)}
    eve = screen_people(make_answers(people), make_checks(list(people))).loc["eve"]
    honest = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    chance = 0.5 * math.log(0.75) + 0.5 * math.log(0.25)
    assert eve["honest_log_likelihood"] == pytest.approx(honest, abs=1e-3)
    assert eve["chance_log_likelihood"] == pytest.approx(chance, abs=1e-3)
    assert eve["log_likelihood"] == pytest.approx(eve["chance_log_likelihood"])
    assert eve["follows"] == pytest.approx(0, abs=1e-3)
    assert (
        "answers unlike the others': a log-likelihood of -0.84 an answer under the others' ranking, where an "
        in (eve["flags"])
    )


def test_the_scale_is_fitted_without_the_person() -> None:
    """One who gave nine answers in ten would follow a scale of their own making."""
    people = dict.fromkeys(("ann", "ben", "cleo", "dan"), (30, 10)) | {"eve": (0, 1000)}
    table = screen_people(make_answers(people), make_checks(list(people)))
    assert table.loc["eve", "follows"] < -1
    assert table["flags"].ne("").to_dict() == {"ann": False, "ben": False, "cleo": False, "dan": False, "eve": True}


def test_a_tie_tells_nothing_of_a_scale() -> None:
    """Somebody who ties four in ten and is right else follows the scale as the others do."""
    people = dict.fromkeys(("ann", "ben", "cleo", "dan"), (75, 25))
    ties = make_answers({"eve": (40, 0)}, ("a=b", "b>a"))
    answers = pd.concat([make_answers({**people, "eve": (45, 15)}), ties], ignore_index=True)
    table = screen_people(answers, make_checks([*people, "eve"]))
    assert table.loc["eve", "follows"] == pytest.approx(table.loc["ann", "follows"], abs=0.1)
    assert table["flags"].eq("").all()


def test_too_few_people_are_not_held_against_each_other() -> None:
    table = screen_people(make_answers({"ann": (60, 20), "ben": (20, 60)}), make_checks(["ann", "ben"]))
    assert table["flags"].eq("").all()


def test_signs_of_attention_add_up_and_others_do_not() -> None:
    """Fisher: -2 (ln .01 + ln .05 + ln .1) = 19.8 of six degrees of freedom."""
    three = [Fault(ATTENTION, p, "") for p in (0.01, 0.05, 0.1)]
    assert combine(three) == pytest.approx(0.00300, abs=2e-5)
    assert combine([*three, Fault(TIME, 0.5, "")]) == pytest.approx(2 * 0.00300, abs=4e-5)
    assert combine([Fault(KEYS, 0.01, ""), Fault(KEYS, 0.02, "")]) == pytest.approx(0.02)
    assert combine([]) == 1


def test_flags_by_benjamini_and_hochberg() -> None:
    """The limits of five are .02, .04, .06, .08, .1 at a rate of .1: the third is the last that is below its own."""
    assert find_limit([0.5, 0.001, 0.055, 0.045, 0.09], rate=0.1) == 0.055
    assert find_limit([0.5, 0.5], rate=0.1) == find_limit([], rate=0.1) == -1


def test_an_honest_pull_to_one_side_is_allowed_for() -> None:
    assert honest_share(2) == pytest.approx(1 / (1 + math.exp(-0.5)))
    rng = np.random.default_rng(0)
    sides = {"ann": 0.6, "lefty": 0.95}
    rows = [
        {
            "person": person,
            "source": f"s{n}",
            "methods": ("x", "y"),
            "ranking": "a>b",
            "places": "ab" if rng.random() < left else "ba",
        }
        for person, left in sides.items()
        for n in range(200)
    ]
    flags = screen_people(pd.DataFrame(rows), make_checks(list(sides)))["flags"]
    assert flags["ann"] == ""
    assert flags["lefty"].startswith("mostly answers left: 190 of 200; one key again and again: 40 ")


@pytest.mark.parametrize("asked", ASKED)
def test_planted_spammers_are_found_and_honest_people_are_left_alone(asked: str) -> None:
    """In two studies; the slow test has many."""
    counts = sum((count_found(seed, asked, 100, 1.0) for seed in range(2)), Counter[str]())
    assert sum(counts["+" + kind] for kind in KINDS) >= 0.8 * sum(counts[kind] for kind in KINDS)
    assert counts["+"] <= 0.05 * counts[""]


@pytest.mark.slow
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("n_answers", [100, 200])
def test_nine_in_ten_spammers_are_found_over_many_studies(asked: str, n_answers: int) -> None:
    counts = sum((count_found(seed, asked, n_answers, 1.0) for seed in range(100, 140)), Counter[str]())
    assert sum(counts["+" + kind] for kind in KINDS) >= 0.9 * sum(counts[kind] for kind in KINDS)
    assert counts["+"] <= 0.05 * counts[""]
