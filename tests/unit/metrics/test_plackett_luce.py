"""Scores of Plackett-Luce against choix, evalica and likelihoods written out by hand."""

from __future__ import annotations

import itertools
import math

import choix
import evalica
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from metrics.plackett_luce import PRIOR_TIES, compute_gradients, fit, leave_out, list_choices, tally_answers
from metrics.rankings import LETTERS

NAMES = ("m0", "m1", "m2", "m3", "m4")
SCORES = np.array([-1.0, -0.3, 0.0, 0.4, 0.9])


def make_answers(rows: list[tuple[tuple[str, ...], str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["methods", "ranking"])


def draw_orders(seed: int, n: int, k: int) -> list[tuple[tuple[str, ...], list[int]]]:
    """(methods by letter, letters' places best first) of n answers by Luce's model."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        shown = rng.choice(len(NAMES), k, replace=False)
        order = np.argsort(-(SCORES[shown] + rng.gumbel(size=k)))
        rows.append((tuple(NAMES[at] for at in shown), order.tolist()))
    return rows


def centre(scores: np.ndarray) -> np.ndarray:
    return scores - scores.mean()


def test_choices_of_a_ranking_by_hand() -> None:
    assert set(list_choices("c>?>b", 4)) == {("abcd", "c", 1.0, 1.0), ("abd", "b", -1.0, 1.0)}
    assert set(list_choices("a=b", 2)) == {("ab", "a", 1.0, 0.5), ("ab", "b", 1.0, 0.5)}
    assert set(list_choices("c>a=b", 3)) == {("abc", "c", 1.0, 1.0), ("ab", "a", 1.0, 0.5), ("ab", "b", 1.0, 0.5)}
    # b then a, or a then b, each half; then the third of what remains
    assert set(list_choices("a=b>c", 3)) == {
        ("abc", "a", 1.0, 0.5),
        ("abc", "b", 1.0, 0.5),
        ("ac", "a", 1.0, 0.5),
        ("bc", "b", 1.0, 0.5),
    }
    assert set(list_choices("?>c>d", 4)) == {("abcd", "d", -1.0, 1.0), ("abc", "c", -1.0, 1.0)}


@pytest.mark.parametrize("tied", ["ab", "abc", "abcd"])
def test_a_tie_is_the_mean_of_all_its_orders(tied: str) -> None:
    size = len(tied) + 1
    last = LETTERS[size - 1]
    mean: dict[tuple[str, str, float], float] = {}
    orders = list(itertools.permutations(tied))
    for order in orders:
        for *choice, weight in list_choices(">".join([*order, last]), size):
            mean[tuple(choice)] = mean.get(tuple(choice), 0.0) + weight / len(orders)
    told = {tuple(choice): weight for *choice, weight in list_choices(f"{'='.join(tied)}>{last}", size)}
    assert told == pytest.approx(mean)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_orders_and_bests_have_the_scores_of_choix(k: int) -> None:
    drawn = draw_orders(k, 400, k)
    numbers = {name: at for at, name in enumerate(NAMES)}
    ranked = [[numbers[methods[place]] for place in order] for methods, order in drawn]
    whole = make_answers([(methods, ">".join(LETTERS[at] for at in order)) for methods, order in drawn])
    ours = fit(tally_answers(whole), prior_ties=1e-9).scores
    assert centre(ours) == pytest.approx(centre(choix.opt_rankings(len(NAMES), ranked, alpha=1e-9)), abs=1e-4)
    if k > 2:
        best = make_answers([(methods, f"{LETTERS[order[0]]}>?") for methods, order in drawn])
        ours = fit(tally_answers(best), prior_ties=1e-9).scores
        top = [(one[0], one[1:]) for one in ranked]
        assert centre(ours) == pytest.approx(centre(choix.opt_top1(len(NAMES), top, alpha=1e-9)), abs=1e-4)


def test_pairs_have_the_scores_of_evalica_ties_and_virtual_ties_among_them() -> None:
    drawn, rng = draw_orders(1, 300, 2), np.random.default_rng(1)
    answers = make_answers(
        [(methods, "a=b" if rng.random() < 0.2 else "a>b" if order == [0, 1] else "b>a") for methods, order in drawn]
    )
    weights = rng.integers(0, 4, len(answers)).astype(float)
    tally = tally_answers(answers)
    winners = {"a>b": evalica.Winner.X, "b>a": evalica.Winner.Y, "a=b": evalica.Winner.Draw}
    average = ["average"] * len(tally.methods)
    theirs = evalica.bradley_terry(
        [*(methods[0] for methods in answers["methods"]), *tally.methods],
        [*(methods[1] for methods in answers["methods"]), *average],
        [*answers["ranking"].map(winners), *[evalica.Winner.Draw] * len(average)],
        weights=[*weights, *[PRIOR_TIES] * len(average)],
        tie_weight=0.5,
        tolerance=1e-10,
        limit=10_000,
    ).scores
    expected = np.log(theirs.loc[tally.methods].to_numpy())
    assert centre(fit(tally, weights).scores) == pytest.approx(centre(expected), abs=1e-4)


def test_best_and_worst_are_the_likelihood_of_marley_and_louviere() -> None:
    """Best of four in proportion to exp(s), then the worst of the three left in proportion to exp(-s)."""
    drawn = draw_orders(2, 300, 4)
    answers = make_answers([(m, f"{LETTERS[order[0]]}>?>{LETTERS[order[3]]}") for m, order in drawn])
    numbers = {name: at for at, name in enumerate(NAMES)}

    def loss(scores: np.ndarray) -> float:
        total = 0.0
        for methods, order in drawn:
            own = scores[[numbers[methods[place]] for place in order]]
            total += own[0] - np.log(np.exp(own).sum()) - own[3] - np.log(np.exp(-own[1:]).sum())
        average = 0.5 * (scores - 2 * np.logaddexp(0, scores))
        return -(total + PRIOR_TIES * average.sum())

    expected = minimize(loss, np.zeros(len(NAMES)), method="BFGS", options={"gtol": 1e-6}).x
    assert fit(tally_answers(answers)).scores == pytest.approx(expected, abs=1e-4)


def test_weights_count_as_repetitions_and_the_rest_of_best_of_k_says_nothing() -> None:
    answers = make_answers([(("x", "y", "z"), "a>?"), (("x", "y"), "b>a"), (("z", "y", "x"), "c>b>a")])
    weights = np.array([3.0, 1.0, 2.0])
    often = answers.loc[answers.index.repeat(weights.astype(int))].reset_index(drop=True)
    assert fit(tally_answers(answers), weights).scores == pytest.approx(fit(tally_answers(often)).scores, abs=1e-8)
    only = fit(tally_answers(make_answers([(("x", "y", "z"), "a>?")]))).scores
    assert only[1] == pytest.approx(only[2])
    assert only[0] > only[1]


def test_two_seeds_of_one_method_say_nothing_of_it_between_themselves() -> None:
    same = make_answers([(("x", "x"), "a>b"), (("x", "x", "x"), "a>?")])
    assert tally_answers(same).methods == []
    assert fit(tally_answers(same)).scores.shape == (0,)
    # x was chosen of {x, x, y}: two thirds of the time by chance alone
    answers = make_answers([(("x", "x", "y"), "a>?")] * 2 + [(("x", "x", "y"), "c>?")])
    scores = fit(tally_answers(answers), prior_ties=1e-6).scores
    assert scores[0] - scores[1] == pytest.approx(0.0, abs=1e-3)
    assert tally_answers(pd.concat([answers, same])).methods == ["x", "y"]


def test_leaving_a_cluster_out_is_the_fit_without_it() -> None:
    drawn = draw_orders(3, 600, 4)
    answers = make_answers([(m, f"{LETTERS[o[0]]}>{LETTERS[o[1]]}>?") for m, o in drawn])
    tally, clusters = tally_answers(answers), np.arange(len(answers)) % 20
    found = fit(tally)
    assert np.abs(compute_gradients(tally, found.scores).sum(axis=0)).max() < 1.0  # what the virtual ties pull back
    moved = leave_out(tally, found, clusters)
    for cluster in range(20):
        without = fit(tally, (clusters != cluster).astype(float)).scores
        assert found.scores + moved[cluster] == pytest.approx(without, abs=2e-3)
        assert np.abs(moved[cluster]).max() > 5e-3


def test_no_answers_have_no_scores() -> None:
    assert fit(tally_answers(make_answers([]))).scores.shape == (0,)


def test_information_is_that_of_pairs() -> None:
    """Four answers to a pair of equals: 4 * 1/4, and the virtual ties' 1/2 * 1/4 each."""
    answers = make_answers([(("x", "y"), "a>b"), (("x", "y"), "b>a")] * 2)
    information = fit(tally_answers(answers)).information
    assert information == pytest.approx(np.array([[1.125, -1.0], [-1.0, 1.125]]))
    assert math.isclose(information.sum(), 2 * PRIOR_TIES / 4)
