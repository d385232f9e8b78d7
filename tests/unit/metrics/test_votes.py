"""Rankings from answers of more than two, their intervals over photos and people, and what these do not say."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from experiments.coverage import SIZES, draw_answers, find_truth, measure_coverage
from metrics.answers import list_comparisons, read_answers
from metrics.votes import (
    JOD,
    compare_with_others,
    compute_ceiling,
    explain_connection,
    explain_intervals,
    rank_methods,
)


def make_answers(*rows: tuple[str, str, tuple[str, ...], str]) -> pd.DataFrame:
    """(source, person, methods, ranking) rows."""
    table = pd.DataFrame(rows, columns=["source", "person", "methods", "ranking"])
    return table.assign(task=[f"t{number}" for number in range(len(table))], simulated=False)


def width(table: pd.DataFrame) -> float:
    return float((table["high"] - table["low"]).mean())


@pytest.mark.parametrize("fours", [0.0, 1.0])
def test_intervals_hold_the_truth_and_derived_pairs_as_new_evidence_do_not(fours: float) -> None:
    """The quick version of `python -m experiments.coverage`: 40 runs of 8 methods, 5 points of noise."""
    found = measure_coverage(SIZES["middle"], fours, find_truth(fours, 25_000), runs=40)
    assert 0.9 < found["photos and people"].share < 0.985
    assert found["answers"].share < 0.9
    if fours:
        assert found["derived pairs"].share < 0.7
        assert found["derived pairs"].half_width < 0.75 * found["answers"].half_width


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("fours", [0.0, 1.0, 0.5], ids=["pairs", "fours", "mixed"])
def test_intervals_cover_93_to_97_percent(size: tuple[int, int, int], fours: float) -> None:
    found = measure_coverage(size, fours, find_truth(fours), runs=300)
    assert 0.93 <= found["photos and people"].share <= 0.97


def test_ranking_of_the_best_of_four_counts_answers_and_comparisons_apart() -> None:
    rows = [(f"s{n}", f"p{n % 6}", ("w", "x", "y", "z"), "b>?" if n % 4 else "a>?") for n in range(24)]
    table = rank_methods(make_answers(*rows)).set_index("method")
    assert table.index[0] == "x"
    assert table["n_judgments"].tolist() == [24] * 4
    assert table.loc["x", ["wins", "ties", "losses"]].tolist() == [54, 0, 6]
    assert table.loc["x", "win_rate"] == 0.9
    assert table.loc["y", ["wins", "losses"]].tolist() == [0, 24]  # y and z were never told apart


def test_a_jod_is_three_to_one() -> None:
    rows = [(f"s{n}", f"p{n % 7}", ("x", "y"), "a>b" if n % 4 else "b>a") for n in range(40)]
    table = rank_methods(make_answers(*rows), prior_ties=1e-6).set_index("method")
    assert table.loc["x", "score_jod"] - table.loc["y", "score_jod"] == pytest.approx(1.0, abs=1e-4)
    for end in ("low", "high"):
        assert table[f"{end}_jod"].tolist() == pytest.approx((table[end] / JOD).tolist())
    assert math.isclose(JOD, math.log(3))


def test_one_person_or_one_face_asked_often_makes_no_more_certain() -> None:
    """The same 200 answers, by 40 people or by 4, about 50 photos or about 5 faces in them."""
    answers = draw_answers(np.random.default_rng(0), 40, 50, 600, 0.0).astype({"person": str, "source": str})
    answers["methods"] = [tuple(name.replace("m", "method ") for name in names) for names in answers["methods"]]
    once = width(rank_methods(answers))
    photo = answers["source"].astype(int)
    taste = (photo % 7) / 3 - 1  # what each face does to the first method
    flip = [
        "a>b" if (names[0] == "method 0") == (worth > 0) and "method 0" in names else ranking
        for names, worth, ranking in zip(answers["methods"], taste, answers["ranking"], strict=True)
    ]
    shared = answers.assign(ranking=flip)
    faces = shared.assign(group=[f"face{number % 7}" for number in photo])
    assert width(rank_methods(faces).query("method == 'method 0'")) > 1.3 * width(
        rank_methods(shared).query("method == 'method 0'")
    )
    assert once > 0


def test_people_who_differ_widen_the_interval() -> None:
    """Half of ten people always prefer x, half y: 200 answers say no more than ten."""
    rows = [
        (f"s{n % 50}", f"p{n % 10}", ("x", "y"), "a>b" if (n % 10) < 5 or n % 37 == 0 else "b>a") for n in range(200)
    ]
    answers = make_answers(*rows)
    assert width(rank_methods(answers)) > 2 * width(rank_methods(answers.drop(columns="person")))


def test_a_method_that_won_all_has_no_interval_and_the_others_keep_theirs() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"s{n % 12}", f"p{n % 6}", ("x", "y"), "a>b" if rng.random() < 0.6 else "b>a") for n in range(60)]
    rows += [(f"s{n % 12}", f"p{n % 6}", ("best", "x", "y"), "a>?") for n in range(30)]
    table = rank_methods(make_answers(*rows)).set_index("method")
    assert table.loc["best", ["low", "high", "low_jod", "rank_low"]].isna().all()
    assert (table.loc[["x", "y"], "low"] < table.loc[["x", "y"], "high"]).all()
    (note,) = explain_connection(make_answers(*rows))
    assert "best won every judgment; x, y lost every judgment but those among themselves" in note


def test_rank_intervals_are_of_the_ranks_that_other_photos_and_people_may_give() -> None:
    table = rank_methods(draw_answers(np.random.default_rng(3), 20, 60, 1000, 1.0), n_resamples=500)
    assert ((table["rank_low"] <= table["rank"]) & (table["rank"] <= table["rank_high"])).all()
    assert (table["rank_high"] - table["rank_low"]).max() >= 1
    assert table["rank_high"].iloc[0] < table["rank_low"].iloc[-1]


def test_comparisons_of_an_answer_share_its_weight_and_key() -> None:
    answers = make_answers(("s", "anna", ("w", "x", "y", "z"), "c>?"), ("s", "anna", ("x", "y"), "a=b"))
    table = list_comparisons(answers)
    assert table[["answer", "pair", "method_a", "method_b", "choice"]].values.tolist() == [
        [0, "t0 ac", "w", "y", "b"],
        [0, "t0 bc", "x", "y", "b"],
        [0, "t0 cd", "y", "z", "a"],
        [1, "t1", "x", "y", "tie"],
    ]
    assert table.groupby("answer")["share"].sum().tolist() == pytest.approx([1.0, 1.0])
    again = read_answers(table[["pair", "source", "person", "method_a", "method_b", "choice"]])
    assert again["ranking"].tolist() == ["b>a", "b>a", "a>b", "a=b"]


def test_an_answer_about_four_counts_once_in_the_ceiling() -> None:
    """Twelve tasks of two people alike, one task where they differ in all: 12 of 13, whatever they were asked."""
    four = ("w", "x", "y", "z")
    rows = [
        (f"s{n}", person, four, "b>a>c>d" if n else "a>?" if person == "anna" else "b>?")
        for n in range(13)
        for person in ("anna", "bert")
    ]
    answers = make_answers(*rows)
    answers["task"] = [f"t{n}" for n in range(13) for _ in range(2)]
    value, low, high, n = compute_ceiling(answers, 100, 0)
    compared = compare_with_others(answers)
    assert compared.groupby(["person", "source"])["share"].sum().tolist() == pytest.approx([1.0] * 26)
    assert (n, value) == (26, pytest.approx(24 / 26))  # of the odd task they share a > b against b > a alone
    assert low < value < high


@pytest.mark.parametrize(
    ("photos", "people", "said"),
    [
        (4, 9, "No intervals: 4 photos say nothing of other photos; 5 do."),
        (9, 1, "do not cover what other people would say: one person answered."),
        (9, 3, "3 people say little of how far others differ"),
        (9, 6, "Intervals (95 %) are over 9 photos and the 6 people who answered."),
    ],
)
def test_what_the_intervals_do_not_cover_is_said(photos: int, people: int, said: str) -> None:
    rows = [(f"s{n % photos}", f"p{n % people}", ("x", "y"), "a>b") for n in range(54)]
    assert said in explain_intervals(make_answers(*rows))


def test_faces_that_photos_share_are_named_so() -> None:
    answers = make_answers(*[(f"s{n}", f"p{n % 6}", ("x", "y"), "a>b") for n in range(12)])
    said = explain_intervals(answers.assign(group=[f"face{n % 6}" for n in range(12)]))
    assert "over 6 people in the photos" in said
    unknown = answers.drop(columns="person")
    assert "it is not known who answered" in explain_intervals(unknown)
