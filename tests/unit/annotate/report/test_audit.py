"""Audit, order effects and the worth of a way of asking, against planted ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from annotate.report.audit import audit_ranking
from annotate.report.information import compare_asked
from annotate.report.order_effects import compute_order_effects
from annotate.report.side_bias import SideBias
from experiments import coverage
from experiments.coverage import draw_answers
from metrics.votes import rank_methods

NO_SIDE = SideBias(0, *[float("nan")] * 6)


def make_answers(rows: list[tuple[str, str, tuple[str, ...], str]]) -> pd.DataFrame:
    """(source, person, methods, ranking) rows; a stands left, ten seconds each."""
    table = pd.DataFrame(rows, columns=["source", "person", "methods", "ranking"])
    return fill(table)


def fill(table: pd.DataFrame) -> pd.DataFrame:
    """What a table of answers has beside methods and ranking."""
    n = len(table)
    sizes = table["methods"].map(len)
    return table.astype({"source": str, "person": str}).assign(
        task=[f"t{number}" for number in range(n)],
        judgment=range(n),
        places=["abcdef"[:size] for size in sizes],
        asked=np.where(sizes == 2, "pair", "best"),
        seconds=10.0,
        created_at=pd.Timestamp("2026-01-01") + pd.to_timedelta(range(n), unit="s"),
    )


def find(table: pd.DataFrame, check: str) -> pd.Series:
    return table[table.iloc[:, 0] == check].iloc[0]


def test_cycles_beyond_chance_are_named_and_no_others() -> None:
    round_and_round = [("x", "y"), ("y", "z"), ("z", "x")]
    rows = [(f"s{n % 9}", f"p{n % 5}", round_and_round[n % 3], "a>b" if n % 10 else "b>a") for n in range(90)]
    row = find(audit_ranking(make_answers(rows)), "cycles")
    assert row["value"] == 1
    assert "such as x over y over z over x" in row["sentence"]
    order = [(f"s{n % 9}", f"p{n % 5}", (("x", "y"), ("y", "z"), ("x", "z"))[n % 3], "a>b") for n in range(90)]
    assert find(audit_ranking(make_answers(order)), "cycles")["value"] == 0


def test_the_person_and_the_photo_that_the_order_hangs_on_are_named() -> None:
    rows = [(f"s{n % 8}", f"p{n % 6}", ("x", "y"), "a>b" if (n // 48) % 2 else "b>a") for n in range(96)]
    rows += [(f"s{n % 8}", "odd one", ("x", "y"), "a>b") for n in range(16)]
    rows += [("odd face", f"p{n % 6}", ("x", "y"), "b>a") for n in range(18)]
    table = audit_ranking(make_answers(rows))
    person, photo = find(table, "one person out"), find(table, "one photo out")
    assert (person["subject"], photo["subject"]) == ("odd one", "odd face")
    assert photo["order_changes"]
    assert "moves x most, by +" in photo["sentence"] or "moves y most, by -" in photo["sentence"]


def test_an_order_that_hangs_on_what_a_tie_is_is_said() -> None:
    """x won most of what it decided, and tied it far more often than y does."""
    rows = [(f"s{n % 9}", f"p{n % 5}", ("x", "z"), "a>b" if n % 10 < 6 else "b>a") for n in range(50)]
    rows += [(f"s{n % 9}", f"p{n % 5}", ("x", "z"), "a=b") for n in range(200)]
    rows += [(f"s{n % 9}", f"p{n % 5}", ("y", "z"), "a>b" if n % 20 < 11 else "b>a") for n in range(100)]
    table = audit_ranking(make_answers(rows))
    ties = table[table["check"] == "ties"].set_index("subject")
    assert ties.loc["left out", "order_changes"]
    assert "the order is another: x before y" in ties.loc["left out", "sentence"]
    none = make_answers([row for row in rows if row[3] != "a=b"])
    assert find(audit_ranking(none), "ties")["sentence"] == "Ties: nobody gave one."


def test_a_side_that_draws_answers_stretches_one_half() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(1500):
        left_is_x = rng.random() < 0.5
        methods = ("x", "y") if left_is_x else ("y", "x")
        odds = (0.5 if left_is_x else -0.5) + 1.0  # x is better by 0.5, left draws by 1
        rows.append((f"s{number % 30}", f"p{number % 9}", methods, "a>b" if rng.logistic() < odds else "b>a"))
    row = find(audit_ranking(make_answers(rows)), "side")
    assert row["order_changes"]
    assert row["value"] > 1.5


def test_a_place_that_draws_answers_is_found_and_none_where_there_is_none() -> None:
    answers = fill(draw_answers(np.random.default_rng(0), 20, 40, 600, 1.0))
    rng = np.random.default_rng(1)
    places = ["".join(rng.permutation(list("abcd"))) for _ in range(len(answers))]
    fair = answers.assign(places=places)
    ranking = rank_methods(fair, n_resamples=0)
    rows = compute_order_effects(fair, ranking, NO_SIDE)
    assert "no effect is seen" in find(rows, "place")["sentence"]
    drawn = fair.assign(
        ranking=[
            f"{at[2]}>?" if n % 6 == 0 else said
            for n, (at, said) in enumerate(zip(places, fair["ranking"], strict=True))
        ]
    )
    rows = compute_order_effects(drawn, ranking, NO_SIDE).set_index("what")
    assert rows.loc["3 of 4", "low"] > 0.25
    assert "more or less than chance at" in rows.loc["1 of 4", "sentence"]
    assert "Side: not known from 0" in find(rows.reset_index(), "left chosen")["sentence"]


def test_haste_in_the_second_half_is_found() -> None:
    rng, rows = np.random.default_rng(0), []
    for number in range(800):
        late = number >= 400
        right = rng.random() < (0.5 if late else 0.9)
        rows.append((f"s{number % 20}", f"p{number % 8}", ("x", "y"), "a>b" if right else "b>a"))
    answers = make_answers(rows).assign(seconds=[10.0] * 400 + [4.0] * 400)
    table = compute_order_effects(answers, rank_methods(answers, n_resamples=0), NO_SIDE)
    time = table[table["effect"] == "time"].reset_index(drop=True)
    assert time.loc[0, "high"] < -0.2
    assert time.loc[1, "value"] == pytest.approx(0.4, abs=1e-6)
    assert "chance does not explain" in time.loc[0, "sentence"]


def test_best_of_four_is_worth_one_and_a_half_pairs_between_equals_by_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trace of the information between equals: a pair 2 · 1/4, the best of four 4 · 3/16; twice as slow: 0.75."""
    for name in ("PHOTO_SPREAD", "PERSON_SPREAD"):
        monkeypatch.setattr(coverage, name, 0.0)
    answers = fill(draw_answers(np.random.default_rng(2), 30, 60, 6000, 0.5))
    answers["seconds"] = np.where(answers["asked"] == "pair", 5.0, 10.0)
    table, said = compare_asked(answers)
    best = table.set_index("asked").loc["best"]
    assert best["low"] < 0.75 < best["high"]
    assert best["ratio"] == pytest.approx(0.75, abs=0.2)
    assert said.startswith(f"Asked for best, a second tells {best['ratio']:.2f} [")
    slow, _ = compare_asked(answers.assign(server_seconds=answers["seconds"] * 2))
    assert slow.set_index("asked").loc["best", "ratio"] == pytest.approx(best["ratio"])
    assert slow["seconds"].tolist() == [10.0, 20.0]


def test_what_one_way_of_asking_tells_is_not_compared_with_nothing() -> None:
    table, said = compare_asked(fill(draw_answers(np.random.default_rng(0), 5, 9, 60, 0.0)))
    assert table["ratio"].isna().all()
    assert "cannot be told" in said


def test_answers_all_alike_have_no_interval_of_width_zero() -> None:
    answers = make_answers([(f"s{n % 9}", f"p{n % 5}", ("x", "y"), "a>b") for n in range(60)])
    table = compute_order_effects(answers, rank_methods(answers, n_resamples=0), NO_SIDE)
    time = table[table["effect"] == "time"]
    assert time[["low", "high"]].isna().all(axis=None)
    assert time["sentence"].str.contains("cannot be told").all()
    assert not time["sentence"].str.contains("nan").any()
