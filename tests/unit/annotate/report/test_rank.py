"""Scores, win matrix and side bias against hand-worked numbers and planted strengths."""

from __future__ import annotations

import math
import re
import uuid

import numpy as np
import pandas as pd
import pytest
from sqlalchemy.orm import Session

from annotate.judging.judgments import undo_judgment
from annotate.judging.people import add_person
from annotate.report.rank import compute_win_matrix, load_answers, load_judgments, select_votes
from annotate.report.side_bias import compute_side_bias
from db.errors import UserError
from db.models import Asked, Choice, Judgment, Pair, Person, Split, Task, TaskCandidate
from db.project import ProjectSettings
from db.session import Database
from metrics.accuracy import compute_wilson
from metrics.votes import explain_connection, rank_methods
from tests.making import add_candidates, judge


def make_votes(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    """(source, method a, method b, choice) rows as votes; a stands left."""
    table = pd.DataFrame(rows, columns=["source", "method_a", "method_b", "choice"])
    return table.assign(shown_left="a")


def simulate(
    rng: np.random.Generator, strengths: dict[str, float], n_sources: int, left_logit: float, tie_share: float
) -> pd.DataFrame:
    """All pairs of methods on each source, answered by Bradley-Terry with a side bias, some ties thrown in."""
    names = list(strengths)
    rows = []
    for source in range(n_sources):
        for place, a in enumerate(names):
            for b in names[:place]:
                left = rng.choice(["a", "b"])
                odds = strengths[a] - strengths[b] + (left_logit if left == "a" else -left_logit)
                choice = "a" if rng.random() < 1 / (1 + math.exp(-odds)) else "b"
                rows.append((f"s{source}", a, b, "tie" if rng.random() < tie_share else choice, left))
    return pd.DataFrame(rows, columns=["source", "method_a", "method_b", "choice", "shown_left"])


def test_three_wins_of_four_are_three_to_one() -> None:
    votes = make_votes(("s", "x", "y", "a"), ("s", "x", "y", "a"), ("s", "y", "x", "b"), ("s", "x", "y", "b"))
    table = rank_methods(votes, n_resamples=0, prior_ties=1e-6).set_index("method")
    assert table.loc["x", "score"] - table.loc["y", "score"] == pytest.approx(math.log(3), abs=1e-5)
    assert table.loc["x", "score"] == pytest.approx(-table.loc["y", "score"])
    assert table.loc["x", ["wins", "ties", "losses", "rank"]].tolist() == [3, 0, 1, 1]
    assert table.loc["y", "win_rate"] == 0.25
    assert math.isnan(table.loc["x", "low"])  # one source tells nothing of other sources


def test_a_tie_is_half_a_win_for_each() -> None:
    votes = make_votes(("s", "x", "y", "a"), ("s", "x", "y", "a"), ("s", "x", "y", "tie"), ("s", "x", "y", "tie"))
    table = rank_methods(votes, n_resamples=0, prior_ties=1e-6).set_index("method")
    assert table.loc["x", "score"] - table.loc["y", "score"] == pytest.approx(math.log(3 / 1), abs=1e-5)
    assert table.loc["x", "win_rate"] == 0.75


def test_a_method_that_won_everything_has_a_finite_score_above_the_rest() -> None:
    votes = make_votes(*[("s", "best", "middle", "a")] * 9, *[("s", "middle", "worst", "a")] * 9)
    table = rank_methods(votes, n_resamples=0)
    assert table["method"].tolist() == ["best", "middle", "worst"]
    assert np.isfinite(table["score"]).all()
    assert table["score"].is_monotonic_decreasing
    assert table["score"].sum() == pytest.approx(0, abs=1e-9)


def test_methods_that_never_met_are_ranked_apart() -> None:
    votes = make_votes(("s", "a1", "a2", "a"), ("s", "a2", "a3", "a"), ("t", "b1", "b2", "b"), ("t", "b1", "b1", "a"))
    table = rank_methods(votes, n_resamples=0)
    assert table[["method", "component", "rank"]].values.tolist() == [
        ["a1", 1, 1],
        ["a2", 1, 2],
        ["a3", 1, 3],
        ["b2", 2, 1],
        ["b1", 2, 2],
    ]
    assert table.groupby("component")["score"].sum().abs().max() < 1e-9
    assert table.set_index("method").loc["b1", "n_judgments"] == 1  # a method against itself says nothing


CYCLE = (("s", "x", "y", "a"), ("s", "y", "z", "a"), ("s", "z", "x", "a"))


@pytest.mark.parametrize(
    ("votes", "told"),
    [
        (CYCLE, []),
        ([("s", "x", "y", "tie"), ("s", "y", "z", "tie")], []),
        ([*CYCLE, ("s", "w", "x", "a")], ["w won every judgment; x, y, z lost every judgment but those among them"]),
        ([*CYCLE, ("s", "w", "x", "a"), ("s", "w", "z", "tie")], []),
        ([*CYCLE, ("s", "x", "x", "a"), ("s", "x", "w", "a")], ["x, y, z won every judgment but those among them"]),
        (
            [("s", "x", "y", "a"), ("s", "y", "z", "a")],
            ["x won every judgment; y won every judgment against some and lost every one to others; z lost every"],
        ),
        (
            [*CYCLE, ("t", "v", "w", "a")],
            ["2 groups that never met", "not strongly connected in group 2, .*: v won every judgment; w lost every"],
        ),
    ],
)
def test_what_has_no_likeliest_score_is_said(votes: list[tuple[str, str, str, str]], told: list[str]) -> None:
    table = make_votes(*votes)
    notes = explain_connection(table)
    assert len(notes) == len(told)
    for note, words in zip(notes, told, strict=True):
        assert re.search(words, note), note
    ranking = rank_methods(table, n_resamples=0)
    parts = ranking.groupby("component")["strong_component"].nunique()
    assert (parts > 1).any() == any("not strongly connected" in note for note in notes)


@pytest.mark.parametrize("n_sources", [5, 30])
@pytest.mark.parametrize("choice", ["a", "tie"])
def test_no_interval_where_every_source_says_the_same(n_sources: int, choice: str) -> None:
    """All resamples are equal then: a width of zero would say that the score is known exactly."""
    votes = make_votes(*[(f"s{n}", "x", "y", choice) for n in range(n_sources)])
    ranking = rank_methods(votes, n_resamples=50)
    assert ranking[["low", "high"]].isna().all(axis=None)
    one_otherwise = rank_methods(pd.concat([votes, make_votes(("t", "x", "y", "b"))]), n_resamples=50)
    assert (one_otherwise["low"] < one_otherwise["high"]).all()


def test_no_votes_give_an_empty_table() -> None:
    assert rank_methods(make_votes(), n_resamples=10).empty


def test_intervals_come_from_sources_not_from_judgments() -> None:
    """Twenty people saying the same of one source make no more certain than one does."""
    rows = [(f"s{n}", "x", "y", "a" if n % 3 else "b") for n in range(30)]
    once = rank_methods(make_votes(*rows), n_resamples=200, seed=1).set_index("method")
    often = rank_methods(make_votes(*rows * 20), n_resamples=200, seed=1).set_index("method")
    for table in (once, often):
        assert table.loc["x", "low"] < table.loc["x", "score"] < table.loc["x", "high"]
    width_once = once.loc["x", "high"] - once.loc["x", "low"]
    assert often.loc["x", "high"] - often.loc["x", "low"] > 0.8 * width_once


def test_planted_order_and_side_bias_are_recovered_from_poor_raters() -> None:
    rng = np.random.default_rng(7)
    strengths = {"m0": -1.5, "m1": -0.75, "m2": 0.0, "m3": 0.75, "m4": 1.5}
    biased = simulate(rng, strengths, 250, left_logit=0.15, tie_share=0.1)
    at_random = simulate(rng, dict.fromkeys(strengths, 0.0), 25, left_logit=0.0, tie_share=0.0)
    always_tie = simulate(rng, strengths, 25, left_logit=0.0, tie_share=1.0)
    votes = pd.concat([biased, at_random, always_tie])
    table = rank_methods(votes, n_resamples=100, seed=0)
    assert table["method"].tolist() == ["m4", "m3", "m2", "m1", "m0"]
    assert (table["low"] < table["score"]).all()
    assert (table["score"] < table["high"]).all()
    bias = compute_side_bias(votes, n_resamples=100, seed=0)
    assert bias.logit_low < 0.15 < bias.logit_high
    assert bias.logit_low > 0
    assert bias.left_share_low < bias.left_share < bias.left_share_high


def test_the_same_seed_gives_the_same_intervals() -> None:
    votes = simulate(np.random.default_rng(0), {"x": 0.0, "y": 1.0, "z": 0.5}, 10, 0.0, 0.2)
    first, again = (rank_methods(votes, n_resamples=50, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    shuffled = votes.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(first, rank_methods(shuffled, n_resamples=50, seed=3))


def test_side_bias_of_one_pair_of_methods_is_the_mean_of_its_two_log_odds() -> None:
    """x left: x wins 30 of 40, log 3. y left: y wins 20 of 40, 0. Bias = (log 3 + 0) / 2."""
    rows = [("x", "y", "a")] * 30 + [("x", "y", "b")] * 10 + [("y", "x", "a")] * 20 + [("y", "x", "b")] * 20
    votes = make_votes(*[(f"s{n % 8}", *row) for n, row in enumerate(rows)])
    bias = compute_side_bias(votes, n_resamples=50)
    assert bias.logit == pytest.approx(math.log(3) / 2, abs=0.01)
    assert bias.logit_low < bias.logit < bias.logit_high
    assert (bias.n_decisive, bias.left_share) == (80, 50 / 80)


def test_side_bias_is_not_given_for_few_or_one_sided_answers() -> None:
    few = compute_side_bias(make_votes(*[("s", "x", "y", "a"), ("t", "x", "y", "b")] * 5))
    assert math.isnan(few.logit)
    assert few.left_share == 0.5
    one_sided = compute_side_bias(make_votes(*[("s", "x", "y", "a")] * 30))
    assert math.isnan(one_sided.logit)
    assert one_sided.left_share == 1.0
    assert math.isnan(compute_side_bias(make_votes()).left_share)


def test_win_matrix_counts_ties_as_half() -> None:
    votes = make_votes(("s", "x", "y", "a"), ("s", "y", "x", "tie"), ("s", "y", "x", "a"), ("s", "x", "y", "a"))
    shares, counts = compute_win_matrix(votes, ["x", "y", "z"])
    assert shares.loc["x", "y"] == 2.5 / 4
    assert shares.loc["y", "x"] == 1.5 / 4
    assert math.isnan(shares.loc["x", "z"])
    assert math.isnan(shares.loc["x", "x"])
    assert counts.values.tolist() == [[0, 4, 0], [4, 0, 0], [0, 0, 0]]


def test_wilson_interval_of_nine_in_ten() -> None:
    """(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964, p = 0.9, n = 10."""
    assert compute_wilson(9, 10) == pytest.approx((0.59585, 0.98212), abs=1e-5)
    assert all(math.isnan(bound) for bound in compute_wilson(0, 0))


@pytest.fixture
def pairs(database: Database) -> list[int]:
    """Three sources (the third in test) with one pair each of 'crisp' and 'soft'; the second pair is gold."""
    ids = []
    with database.write() as session:
        for number, split in enumerate((Split.train, Split.train, Split.test)):
            crisp, soft = add_candidates(session, f"face{number}", ["crisp", "soft"], split)
            sides = {"source_id": crisp.source_id, "a_id": crisp.id, "b_id": soft.id}
            gold = "a" if number == 1 else None
            pair = Pair(key=uuid.uuid4().hex, **sides, shuffle_key=number, gold_answer=gold)
            session.add(pair)
            session.flush()
            ids.append(pair.id)
    return ids


def answer(session: Session, person: Person, pair_id: int, choice: Choice, repeat_no: int = 0) -> str:
    """One judgment, a left; its uuid."""
    return judge(session, person.id, pair_id, choice, repeat_no=repeat_no).uuid


def test_load_leaves_out_what_does_not_count(database: Database, pairs: list[int]) -> None:
    with database.write() as session:
        anna, robot = add_person(session, "anna"), add_person(session, "robot", simulated=True)
        answer(session, anna, pairs[0], Choice.a)
        answer(session, anna, pairs[0], Choice.b, repeat_no=1)
        answer(session, anna, pairs[1], Choice.a)
        undone = answer(session, anna, pairs[2], Choice.a)
        undo_judgment(session, anna.id, undone, ProjectSettings())
        answer(session, anna, pairs[2], Choice.skip)
        answer(session, robot, pairs[2], Choice.tie)
    with database.read() as session:
        judgments = load_judgments(session)
        with_robot = load_judgments(session, include_simulated=True)
        in_test = load_judgments(session, split=Split.test, include_simulated=True)
        with pytest.raises(UserError, match="no person called 'bert'"):
            load_judgments(session, people=["bert"])
        robots = load_judgments(session, people=["robot"], include_simulated=True)
    assert judgments["choice"].tolist() == ["a", "b", "a", "skip"]
    votes = select_votes(judgments)
    assert votes[["source", "method_a", "method_b", "choice", "shown_left", "person"]].values.tolist() == [
        ["face0", "crisp", "soft", "a", "a", "anna"]
    ]
    assert select_votes(with_robot)[["person", "simulated"]].values.tolist() == [["anna", False], ["robot", True]]
    assert in_test["choice"].tolist() == ["skip", "tie"]
    assert robots[["person", "simulated"]].values.tolist() == [["robot", True]]


def test_load_of_an_empty_database_is_an_empty_table(database: Database) -> None:
    with database.read() as session:
        assert select_votes(load_judgments(session)).empty


def test_answers_to_tasks_are_loaded_beside_those_to_pairs(database: Database, pairs: list[int]) -> None:
    with database.write() as session:
        anna = add_person(session, "anna")
        answer(session, anna, pairs[0], Choice.b)
        shown = add_candidates(session, "face9", ["crisp", "soft", "odd"], Split.val)
        task = Task(key="t" * 32, source_id=shown[0].source_id, size=3, shuffle_key=1)
        session.add(task)
        session.flush()
        for letter, candidate in zip("abc", shown, strict=True):
            session.add(TaskCandidate(task_id=task.id, letter=letter, candidate_id=candidate.id))
        given = {"task_id": task.id, "person_id": anna.id, "asked": Asked.best, "places": "cab", "seconds": 3.0}
        session.add(Judgment(uuid=str(uuid.uuid4()), ranking="c>?", **given))
        session.add(Judgment(uuid=str(uuid.uuid4()), choice=Choice.skip, skip_reason="x", repeat_no=1, **given))
    with database.read() as session:
        judgments, answers = load_judgments(session), load_answers(session)
        assert load_answers(session, split=Split.val)["asked"].tolist() == ["best"]
    assert judgments["choice"].tolist() == ["b", "ranked", "skip"]
    assert select_votes(judgments)["choice"].tolist() == ["b"]
    names = ["task", "source", "split", "person", "asked", "methods", "ranking", "places", "seconds"]
    assert answers[names].values.tolist()[1] == [
        *("t" * 32, "face9", "val", "anna", "best", ("crisp", "soft", "odd"), "c>?", "cab", 3.0)
    ]
    assert answers[["asked", "methods", "ranking", "places"]].values.tolist()[0] == [
        *("pair", ("crisp", "soft"), "b>a", "ab")
    ]
    _, counts = compute_win_matrix(answers, ["crisp", "soft", "odd"])
    assert counts.values.tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
