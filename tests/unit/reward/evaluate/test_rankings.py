"""Rankings of methods and how sure their agreement is, against scipy, evalica and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, spearmanr

from metrics.votes import rank_methods
from reward.evaluate.compare import Labels
from reward.evaluate.rankings import compare_rankings, correlate_ranks, count_wins, fit_scores, join_votes, resample
from reward.evaluate.report import describe_rankings
from tests.unit.reward.evaluate.test_compare import make_pair, predict

METHODS = ["best", "good", "fair", "bad"]
NO_VOTES = pd.DataFrame(columns=["pair", "source", "method_a", "method_b", "choice"])


def rank(noise: float, methods: list[str] = METHODS, photos: int = 8) -> tuple[Labels, np.ndarray]:
    """All pairs of the methods on each photo, people preferring the earlier name; a margin with noise."""
    rng = np.random.default_rng(3)
    rows, margin = [], []
    for number in range(photos):
        for place, a in enumerate(methods):
            for b in methods[:place]:
                rows.append(make_pair(len(rows), 0.0, source=f"photo{number}", method_a=a, method_b=b))
                margin.append(methods.index(b) - place + noise * rng.normal())
    return Labels(tuple(rows), np.zeros(len(rows), dtype=int)), np.array(margin)


def random_votes(seed: int, photos: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(400):
        a, b = rng.choice(6, 2, replace=False)
        choice = "tie" if rng.random() < 0.15 else "a" if rng.logistic() < 1.5 * (a - b) else "b"
        rows.append((f"pair{number}", f"photo{rng.integers(photos)}", f"m{a}", f"m{b}", choice))
    return pd.DataFrame(rows, columns=NO_VOTES.columns)


def test_perfect_agreement_has_the_interval_one_to_one() -> None:
    labels, margin = rank(0.0)
    methods, table = compare_rankings([predict("mine", margin), predict("not", -margin)], labels, NO_VOTES)
    assert methods["method"].tolist() == METHODS
    for name in ("spearman", "kendall"):
        for end in ("", "_low", "_high"):
            assert table[f"{name}{end}"].tolist() == pytest.approx([1.0, -1.0]), f"{name}{end}"
    scores = methods.set_index("method")
    assert scores["mine"].to_dict() == pytest.approx(scores["people"].to_dict())
    said = describe_rankings(table)
    assert "| mine | 4 | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] |" in said
    assert "no interval" not in said[-2]


def test_a_coin_knows_nothing() -> None:
    labels, margin = rank(0.0)
    coin = np.random.default_rng(0).normal(size=len(margin))
    row = compare_rankings([predict("coin", coin)], labels, NO_VOTES)[1].iloc[0]
    assert row["spearman_low"] < -0.3 < 0.3 < row["spearman_high"]
    assert row["spearman_low"] <= row["spearman"] <= row["spearman_high"]
    assert row["kendall_low"] <= row["kendall"] <= row["kendall_high"]


@pytest.mark.parametrize(("methods", "photos", "correlation"), [(METHODS[:2], 8, "not known"), (METHODS, 4, "1.000")])
def test_too_few_methods_or_photos_have_no_interval(methods: list[str], photos: int, correlation: str) -> None:
    labels, margin = rank(0.0, methods, photos)
    table = compare_rankings([predict("mine", margin)], labels, NO_VOTES)[1]
    assert table[["spearman_low", "spearman_high", "kendall_low", "kendall_high"]].isna().all(axis=None)
    said = describe_rankings(table)
    assert f"| mine | {len(methods)} | {correlation} | {correlation} |" in said
    assert "Below 3 methods there is no correlation, below 5 photos no interval." in said[-2]


def test_a_scorer_that_answers_on_few_photos_has_no_interval() -> None:
    labels, margin = rank(0.0)
    few = np.where(labels.sources <= "photo3", margin, np.nan)
    table = compare_rankings([predict("few", few), predict("all", margin)], labels, NO_VOTES)[1].set_index("scorer")
    assert table["spearman_low"].isna().to_dict() == {"few": True, "all": False}
    assert table["spearman"].tolist() == pytest.approx([1.0, 1.0])


def test_methods_that_a_scorer_never_compared_are_left_out() -> None:
    labels, margin = rank(0.0, [*METHODS, "worst"])
    known = np.array(["worst" not in (row.method_a, row.method_b) for row in labels.pairs])
    methods, table = compare_rankings([predict("part", np.where(known, margin, np.nan))], labels, NO_VOTES)
    assert methods.set_index("method")["part"].isna().to_dict() == dict.fromkeys(METHODS, False) | {"worst": True}
    assert table.iloc[0][["methods", "spearman", "spearman_low"]].tolist() == [4, 1.0, 1.0]


def test_labels_without_votes_are_one_vote_each() -> None:
    labels = Labels((make_pair(0, 0.75), make_pair(1, 0.5), make_pair(2, 0.0)), np.zeros(3, dtype=int))
    votes = pd.DataFrame([("pair0", "photo0", "best", "bad", choice) for choice in "aaab"], columns=NO_VOTES.columns)
    joined = join_votes(labels, votes)
    assert joined["choice"].tolist() == ["a", "a", "a", "b", "tie", "b"]
    wins = count_wins(joined, ["photo0", "photo1", "photo2"], ["best", "bad"])
    assert wins[:, 0, 1].tolist() == [3.0, 0.5, 0.0]
    assert wins[:, 1, 0].tolist() == [1.0, 0.5, 1.0]


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_rank_methods(seed: int) -> None:
    votes = random_votes(seed)
    if seed == 4:  # one method wins all: only the virtual ties keep it finite
        votes["choice"] = np.where(votes["method_a"] == "m5", "a", np.where(votes["method_b"] == "m5", "b", "tie"))
    ranking = rank_methods(votes, n_resamples=0).set_index("method")["score"].sort_index()
    sources = sorted(set(votes["source"]))
    wins = count_wins(votes, sources, list(ranking.index))
    drawn = np.array([np.ones(len(sources)), np.arange(len(sources)) % 3 * 1000])
    ours = fit_scores(resample(wins, drawn))
    assert ours[0] - ours[0].mean() == pytest.approx(ranking.to_numpy(), abs=1e-5)
    often = votes.loc[votes.index.repeat(votes["source"].map(dict(zip(sources, drawn[1], strict=True))).astype(int))]
    again = rank_methods(often, n_resamples=0).set_index("method")["score"].sort_index()
    assert ours[1] - ours[1].mean() == pytest.approx(again.to_numpy(), abs=1e-4)


def test_a_method_that_a_resample_lacks_has_no_score() -> None:
    votes = pd.DataFrame([("p0", "photo0", "x", "y", "a"), ("p1", "photo1", "x", "z", "a")], columns=NO_VOTES.columns)
    wins = count_wins(votes, ["photo0", "photo1"], ["x", "y", "z"])
    scores = fit_scores(resample(wins, np.array([[2, 0], [1, 1]])))
    assert np.isnan(scores).tolist() == [[False, False, True], [False, False, False]]


def test_correlations_are_scipys() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (50, 7)).astype(float), rng.integers(0, 5, (50, 7)).astype(float)
    x[rng.random(x.shape) < 0.1] = np.nan
    spearman, kendall = correlate_ranks(x, y)
    for number in range(50):
        known = np.isfinite(x[number])
        pair = x[number][known], y[number][known]
        assert spearman[number] == pytest.approx(spearmanr(*pair).statistic)
        assert kendall[number] == pytest.approx(kendalltau(*pair).statistic)
    assert np.isnan(correlate_ranks(np.array([1.0, 2.0, np.nan]), np.array([1.0, 2.0, 3.0]))).all()
    assert np.isnan(correlate_ranks(np.array([1.0, 2.0, 3.0]), np.ones(3))).all()
