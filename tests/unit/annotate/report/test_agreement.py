"""Agreement, consistency and flags against hand-worked numbers and raters that deserve a flag."""

from __future__ import annotations

import math
from typing import Literal

import evalica
import numpy as np
import pandas as pd
import pytest

from annotate.report.agreement import compare_repeats, compute_agreement
from annotate.report.rank import select_votes
from annotate.report.screening import describe_people
from metrics.votes import compare_with_others


def make_judgments(rows: list[dict[str, object]]) -> pd.DataFrame:
    """Judgments from their pair, person and choice; what a row leaves out is ordinary."""
    usual = {
        "source": "s",
        "method_a": "x",
        "method_b": "y",
        "shown_left": "a",
        "repeat_no": 0,
        "gold_answer": None,
        "simulated": False,
        "seconds": 2.0,
        "server_seconds": float("nan"),
    }
    return pd.DataFrame([usual | row for row in rows])


def rate(ratings: dict[str, str], times: int = 1) -> pd.DataFrame:
    """Votes from {person: one letter a pair}, a, t(ie), b or - for none; `times` copies of the pairs."""
    letters = {"a": "a", "t": "tie", "b": "b"}
    rows = [
        {"pair": f"p{copy}-{place}", "source": f"s{copy}", "person": person, "choice": letters[letter]}
        for copy in range(times)
        for person, answers in ratings.items()
        for place, letter in enumerate(answers)
        if letter != "-"
    ]
    return make_judgments(rows)


@pytest.mark.parametrize("distance", ["nominal", "ordinal"])
def test_alpha_is_evalicas(distance: Literal["nominal", "ordinal"]) -> None:
    rng = np.random.default_rng(0)
    letters = {f"p{number}": "".join(rng.choice(list("aabt-"), 30)) for number in range(5)}
    votes = rate(letters)
    codes = votes["choice"].map({"a": 0.0, "tie": 1.0, "b": 2.0})
    ratings = votes.assign(code=codes).pivot(index="person", columns="pair", values="code")
    shared = ratings.loc[:, ratings.notna().sum() > 1]
    value = compute_agreement(votes, n_resamples=0).set_index("measure").loc[f"alpha {distance}", "value"]
    assert value == pytest.approx(evalica.alpha(shared, distance).alpha)


def test_alpha_by_hand() -> None:
    """Three times the units (a, a), (b, b), (a, tie), (a, a): of 24 values 15 a, 3 tie, 6 b.

    Nominal: observed 6/24, expected (24² − 15² − 3² − 6²) / (24 · 23) = 306/552.
    Ordinal, squared rank distances a–tie ((15+3)/2)² = 81, tie–b (9/2)² = 20.25, a–b (15/2 + 3 + 6/2)² = 182.25:
    observed 6 · 81 / 24, expected 2 (15·3·81 + 3·6·20.25 + 15·6·182.25) / (24 · 23).
    """
    votes = rate({"anna": "abaa-", "bert": "abtab"}, times=3)
    table = compute_agreement(votes, n_resamples=200).set_index("measure")
    assert table.loc["alpha nominal", "value"] == pytest.approx(1 - (6 / 24) / (306 / 552))
    expected = 2 * (15 * 3 * 81 + 3 * 6 * 20.25 + 15 * 6 * 182.25) / (24 * 23)
    assert table.loc["alpha ordinal", "value"] == pytest.approx(1 - (6 * 81 / 24) / expected)
    assert table.loc["alpha nominal", "low"] < table.loc["alpha nominal", "value"] < table.loc["alpha nominal", "high"]
    assert table.loc["alpha nominal", "n"] == 12


@pytest.mark.parametrize(
    "votes",
    [
        rate({"anna": "ab", "bert": "ab"}),  # two shared pairs
        rate({"anna": "a", "bert": "a"}, times=20),  # one answer only
        rate({"anna": "ab--", "bert": "--ab"}, times=20),  # nobody shares a pair
        rate({"anna": "a"}).iloc[:0],
    ],
)
def test_alpha_of_too_little_is_not_given(votes: pd.DataFrame) -> None:
    table = compute_agreement(votes).set_index("measure")
    assert math.isnan(table.loc["alpha nominal", "value"])
    assert math.isnan(table.loc["alpha ordinal", "low"])


def test_agreement_with_others_leaves_the_person_and_unclear_majorities_out() -> None:
    # Pair 0: all a. Pair 1: anna against two. Pair 2: each of the three alone. Pair 3: anna alone judged it.
    compared = compare_with_others(rate({"anna": "abta", "bert": "aaa-", "carl": "aab-"}))
    agreed = compared.groupby("person")["agrees"].agg(["sum", "size"])
    assert agreed.loc["anna"].tolist() == [1, 2]  # others on pair 2 are split: a and b
    # Bert on pair 1: the others said b and a, no majority; on pair 2 tie and b, none either.
    assert agreed.loc["bert"].tolist() == [1, 1]
    assert agreed.loc["carl"].tolist() == [1, 1]


def test_human_ceiling_counts_people_only() -> None:
    people = rate({"anna": "aab", "bert": "aaa"}, times=8)
    robots = rate({"robot 1": "bbb", "robot 2": "bbb"}, times=8).assign(simulated=True)
    table = compute_agreement(pd.concat([people, robots], ignore_index=True)).set_index("measure")
    # Two of three answers of each person equal the other's.
    assert table.loc["human ceiling", "value"] == pytest.approx(2 / 3)
    assert table.loc["human ceiling", "n"] == 48
    # Every one of the 8 sources is the same, which is not to say that the share is certain.
    assert table.loc["human ceiling", "low"] < 0.5
    assert table.loc["human ceiling", "high"] > 0.8
    only_robots = compute_agreement(robots).set_index("measure")
    assert math.isnan(only_robots.loc["human ceiling", "value"])


def test_consistency_is_the_same_candidate_after_swapping_sides() -> None:
    rows = [
        {"pair": "p1", "person": "anna", "choice": "a", "shown_left": "a"},
        {"pair": "p1", "person": "anna", "choice": "a", "shown_left": "b", "repeat_no": 1},  # other side, same face
        {"pair": "p2", "person": "anna", "choice": "a", "shown_left": "a"},
        {"pair": "p2", "person": "anna", "choice": "b", "shown_left": "b", "repeat_no": 1},  # left both times
        {"pair": "p3", "person": "anna", "choice": "tie"},
        {"pair": "p3", "person": "anna", "choice": "tie", "repeat_no": 1},
        {"pair": "p4", "person": "anna", "choice": "a"},
        {"pair": "p4", "person": "anna", "choice": "skip", "repeat_no": 1},
        {"pair": "p1", "person": "bert", "choice": "b"},
    ]
    assert compare_repeats(make_judgments(rows))["consistent"].tolist() == [True, False, True]


def test_people_table_counts_by_hand() -> None:
    rows: list[dict[str, object]] = [
        {"pair": f"p{n}", "person": "anna", "choice": "a", "shown_left": "a" if n < 6 else "b", "seconds": n / 10}
        for n in range(8)
    ]
    rows += [{"pair": f"p{n}", "person": "anna", "choice": "tie", "seconds": 1.0} for n in (8, 9)]
    rows += [{"pair": "p10", "person": "anna", "choice": "skip", "seconds": 9.0}]
    rows += [
        {"pair": f"g{n}", "person": "anna", "choice": "a", "gold_answer": "a" if n < 3 else "b", "seconds": 1.0}
        for n in range(5)
    ]
    rows += [{"pair": "p0", "person": "bert", "choice": "a"}]
    judgments = make_judgments(rows)
    anna, bert = describe_people(judgments, select_votes(judgments)).to_dict("records")
    assert (anna["person"], anna["judgments"], anna["skips"], anna["votes"], anna["decisive"]) == ("anna", 16, 1, 10, 8)
    assert (anna["tie_share"], anna["left_share"], anna["median_seconds"]) == (0.2, 6 / 8, 0.85)
    assert anna["fast_share"] == 4 / 16  # 0, 0.1, 0.2, 0.3 s
    assert (anna["gold"], anna["gold_right"], anna["gold_accuracy"]) == (5, 3, 0.6)
    assert (anna["gold_accuracy_low"], anna["gold_accuracy_high"]) == pytest.approx((0.2307, 0.8824), abs=1e-4)
    assert anna["shared_pairs"] == 1
    assert math.isnan(anna["agreement"])
    assert math.isnan(anna["consistency"])
    assert bert["flags"] == ""
    assert math.isnan(bert["left_share"])


def simulate_rater(rng: np.random.Generator, name: str, kind: str) -> list[dict[str, object]]:
    """60 pairs of which 30 are repeated; a is better in all, and a steady rater finds it nine times in ten."""
    rows: list[dict[str, object]] = []
    for repeat_no, n_pairs in ((0, 60), (1, 30)):
        for pair in range(n_pairs):
            left = "a" if (pair + repeat_no) % 2 else "b"
            usual = rng.choice(["a", "b", "tie"], p=[0.85, 0.1, 0.05])
            choice = {"left": left, "random": rng.choice(["a", "b"]), "tie": "tie"}.get(kind, usual)
            seconds = 0.2 if kind == "fast" else 2.0
            rows.append(
                {
                    "pair": f"p{pair}",
                    "source": f"s{pair}",
                    "person": name,
                    "choice": choice,
                    "shown_left": left,
                    "repeat_no": repeat_no,
                    "seconds": seconds,
                }
            )
    return rows


def test_poor_raters_are_flagged_and_good_ones_are_not() -> None:
    rng = np.random.default_rng(5)
    kinds = {
        "good 1": "",
        "good 2": "",
        "good 3": "",
        "lefty": "left",
        "dice": "random",
        "tied": "tie",
        "hasty": "fast",
    }
    judgments = make_judgments([row for name, kind in kinds.items() for row in simulate_rater(rng, name, kind)])
    table = describe_people(judgments, select_votes(judgments)).set_index("person")
    flags = table["flags"]
    assert flags["good 1"] == flags["good 2"] == flags["good 3"] == ""
    assert "mostly answers left: 60 of 60" in flags["lefty"]
    assert "one key again and again: 60 answers running on one place of 2" in flags["lefty"]
    assert "does not repeat their own answers: 0 of 30 the same [0%, 11%]" in flags["lefty"]
    assert "answers unlike the others': a log-likelihood of " in flags["dice"]
    assert flags["tied"].startswith("many ties: 100% of answers")
    assert flags["hasty"] == "very fast: 100% of answers under 0.4 s"
    assert table.loc["good 1", "agreement"] > table.loc["dice", "agreement"]
    assert table.loc["good 1", "consistency_low"] < table.loc["good 1", "consistency"]
    assert len(table) == 7  # flagged, not left out


def time_answers(name: str, seconds: list[tuple[float, float]]) -> pd.DataFrame:
    """A person's answers from their (seconds claimed, seconds by the server)."""
    return make_judgments(
        [
            {"pair": f"p{n}", "person": name, "choice": "ab"[n % 2], "seconds": claimed, "server_seconds": seen}
            for n, (claimed, seen) in enumerate(seconds)
        ]
    )


def flags_of(judgments: pd.DataFrame) -> list[str]:
    return [flag for flag in describe_people(judgments, select_votes(judgments))["flags"][0].split("; ") if flag]


def test_a_script_that_claims_seven_seconds_an_answer_is_flagged_by_the_servers_time() -> None:
    """The 600 answers in 18 s that nothing spoke against: half of them came together, a hundred at a time."""
    together = [(7.3, 3.0), *[(7.3, 0.0)] * 99] * 3
    judgments = time_answers("script", [(7.3, 0.03)] * 300 + together)
    fast, claims = flags_of(judgments)
    assert fast == "very fast: 100% of answers under 0.4 s"
    assert claims == "claims more time than passed: 600 of 600 answers, in all 4,380 s where the server saw 18 s"
    table = describe_people(judgments, select_votes(judgments))
    assert table[["timed", "overclaimed_share"]].to_dict("records") == [{"timed": 600, "overclaimed_share": 1.0}]


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param([(0.9, 1.0)] * 60, id="fast"),
        pytest.param([(1.0, 0.98), (1.0, 1.02)] * 30, id="late by some milliseconds"),
        pytest.param([(2.0, 3.9), (2.0, 0.1)] * 30, id="a network that brings every other answer two seconds late"),
        pytest.param(([(9.0, 1000.0), *[(9.0, 9.0)] * 3, (9.0, 10.0)]) * 12, id="five answers together, over and over"),
        pytest.param([(3.0, float("nan"))] * 60, id="of before the server looked"),
        pytest.param([(3.0, 600.0)] * 60, id="a break after each"),
    ],
)
def test_honest_people_are_not_flagged_for_their_network(seconds: list[tuple[float, float]]) -> None:
    assert flags_of(time_answers("anna", seconds)) == []


def test_a_break_pays_for_some_minutes_of_claims_and_no_more() -> None:
    judgments = time_answers("script", [(1.0, 7200.0)] + [(10.0, 0.1)] * 100)
    claims = describe_people(judgments, select_votes(judgments))
    assert claims["overclaimed_share"][0] == pytest.approx(70 / 101)


def test_nobody_is_an_empty_table() -> None:
    nothing = make_judgments([{"pair": "p", "person": "anna", "choice": "a"}]).iloc[:0]
    assert describe_people(nothing, nothing).empty
