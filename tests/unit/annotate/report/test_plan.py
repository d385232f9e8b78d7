"""What a report says of neighbours in the ranking and of pairs of images, and what `annotate plan` says of a study."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from annotate.report.plan import (
    FEWEST,
    NEIGHBOUR_COLUMNS,
    compare_neighbours,
    count_fewest,
    decide_pairs,
    describe_neighbours,
    describe_pairs,
    round_number,
)
from annotate.report.plan_command import Known, PlanOptions, make_plan
from metrics.answers import read_answers
from metrics.votes import rank_methods

SCORES = {"best": 2.0, "middle": 0.15, "worst": 0.0}


def make_votes(n: int, photos: int = 30, people: int = 8) -> pd.DataFrame:
    """n votes by Bradley-Terry on pairs of SCORES' methods."""
    rng, names = np.random.default_rng(0), list(SCORES)
    rows = []
    for number in range(n):
        a, b = rng.permutation(3)[:2]
        wins = rng.random() < 1 / (1 + math.exp(SCORES[names[b]] - SCORES[names[a]]))
        photo = f"s{rng.integers(photos)}"
        about = {"pair": f"{photo} {names[a]} {names[b]}", "source": photo, "person": f"p{number % people}"}
        about |= {"method_a": names[a], "method_b": names[b], "choice": "a" if wins else "b", "shown_left": "a"}
        rows.append(about)
    return pd.DataFrame(rows)


def test_neighbours_are_decided_or_say_what_is_missing() -> None:
    votes = make_votes(400)
    table = compare_neighbours(read_answers(votes), rank_methods(votes, n_resamples=0))
    assert table["decided"].tolist() == [True, False]
    far, near = describe_neighbours(table, median_seconds=6.0)
    assert far.startswith(("best is better than middle by 1.", "best is better than worst by 1."))
    assert far.endswith("decided, however often you look.")
    assert "not decided. If that is what it is, about" in near or "no number of answers on the same" in near
    ranked = rank_methods(votes, n_resamples=0)["score"].to_numpy()
    assert table["difference_jod"].to_numpy() == pytest.approx(-np.diff(ranked) / math.log(3), abs=0.03)


def test_sentences_of_what_is_missing() -> None:
    def say(**values: object) -> str:
        usual = dict(zip(NEIGHBOUR_COLUMNS, ("x", "y", 0.2, -0.1, 0.5, False, 405.0, 3.0, 200, 40, 5), strict=True))
        return describe_neighbours(pd.DataFrame([usual | values]), median_seconds=4.2)[0]

    start = "x and y differ by 0.20 JOD [-0.10, +0.50]: not decided."
    assert say() == f"{start} If that is what it is, about 410 more answers tell with 80% power (29 minutes)."
    assert say(more_answers=math.inf) == (
        f"{start} If that is what it is, no number of answers on the same 40 photos by the same 5 people tells with "
        "80% power; 3.0 times as many of all three do, 400 more answers (28 minutes)."
    )
    assert say(times=math.nan) == f"{start} The difference is too small to plan for."
    assert say(difference_jod=math.nan).startswith("x and y: too little to go by")
    assert "more than 10 JOD apart" in say(low_jod=-251.3, high_jod=251.6)
    assert say(decided=True, difference_jod=-0.2).startswith("y is better than x by 0.20 JOD")
    assert [round_number(n) for n in (7, 404.2, 12_345)] == [7, 410, 13_000]


def test_methods_that_never_met_are_not_planned_for() -> None:
    votes = make_votes(60)
    others = votes.replace({"best": "u", "middle": "v", "worst": "w"})
    both = pd.concat([votes, others.assign(pair="o" + others["pair"])], ignore_index=True)
    table = compare_neighbours(read_answers(both), rank_methods(both, n_resamples=0))
    assert table["difference_jod"].isna().tolist() == [False, False, True, False, False]


def test_pairs_of_images_are_decided_by_people_who_agree() -> None:
    assert count_fewest() == FEWEST
    answers = {"all": "a" * 7, "half": "ab" * 40, "some": "aabt", "one": "b"}
    rows = [
        {"task": task, "source": "s", "methods": ("x", "y"), "ranking": {"a": "a>b", "b": "b>a", "t": "a=b"}[letter]}
        for task, said in answers.items()
        for letter in said
    ]
    rows += [{"task": "four", "source": "s", "methods": ("x", "y", "z", "u"), "ranking": "a>?"}] * 7
    table = decide_pairs(pd.DataFrame(rows)).set_index("pair")
    fours = {f"four a{letter}": "a" for letter in "bcd"}
    assert table["decided"].to_dict() == {"all": "a", "half": "even", "some": "open", **fours}
    assert table.loc["some", ["for_a", "for_b", "ties"]].tolist() == [2, 1, 1]
    assert describe_pairs(table).startswith("Of 6 pairs of images with two answers or more 4 are decided, 1 are about ")
    assert describe_pairs(table.iloc[:0]) == ""


def test_a_plan_says_where_its_numbers_come_from() -> None:
    result, lines = make_plan(PlanOptions(effect=0.5, photos=400, people=30), Known(methods=3, seconds=4.0))
    assert lines[0] == (
        "pairs: 3 methods (the project's), 400 photos (given), 30 people (given), 4.0 s an answer (the project's)"
    )
    assert result["from"]["photo_sd"] == "assumed"
    assert 0 < result["answers_looking_once"] < result["answers_looking_always"]
    assert lines[2].startswith("0.5 JOD with 80% power takes about ")
    assert "30 people × " in lines[2]


def test_a_plan_says_what_no_number_of_answers_tells() -> None:
    result, lines = make_plan(PlanOptions(effect=0.1), Known())
    assert result["answers_looking_once"] is None
    assert "takes more than any number of answers on these photos by these people" in lines[2]
    assert result["least_jod"] == pytest.approx(2.8016 * math.sqrt(0.36 / 50 + 0.09 / 5), abs=1e-3)
    assert lines[-1].startswith("more answers on the same 50 photos by the same 5 people never tell less than 0.44 JOD")


def test_four_at_once_take_fewer_answers() -> None:
    pairs, fours = (make_plan(PlanOptions(effect=0.6, photos=200, people=30, size=k), Known())[0] for k in (2, 4))
    assert fours["answers_looking_once"] < 0.75 * pairs["answers_looking_once"]
    assert (pairs["seconds"], fours["seconds"]) == (5.0, pytest.approx(14.2))
