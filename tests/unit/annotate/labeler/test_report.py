"""The report's numbers by hand, and on data where the truth is known: noise, leaks, a planted metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from annotate.labeler.report import (
    compare_methods,
    compute_coverage,
    compute_importance,
    compute_learning_curve,
    describe_against_best,
    predict_boosting,
    predict_held_out,
)
from annotate.labeler.settings import BOOSTING, LOGISTIC, SIDE, SVM, FitSettings
from annotate.labeler.svm import Training, fit_labeler
from metrics.accuracy import bootstrap_mean, bootstrap_share, compute_calibration, compute_credit, exact_interval

QUICK = FitSettings(kernel="linear")
NAMES = ["good", "bad", "weak", "none"]


@pytest.fixture(scope="module")
def data(make_training: Callable[..., Training]) -> Training:
    return make_training(300, sources=30)


def test_permuted_labels_give_chance_accuracy(data: Training) -> None:
    """Whole answers are shuffled: nothing is left to learn, so anything above chance would be a leak."""
    accuracies = []
    for seed in range(4):
        permuted = dataclasses.replace(data, p_a=np.random.default_rng(seed).permutation(data.p_a))
        held_out = predict_held_out(permuted, NAMES, QUICK)
        accuracies.append(compute_credit(held_out.margins[SVM], permuted.p_a).mean())
    # four times 300 answers: 0.5 ± 3 · 0.0144
    assert abs(np.mean(accuracies) - 0.5) < 0.044


def test_labels_do_not_leak_across_sources() -> None:
    """Every pair of a source has the same random answer and a value that names the source; only a leak can use it."""
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(40), 6)
    answers = rng.integers(0, 2, 40).astype(float)[sources]
    name = rng.normal(size=(40, 5))[sources] + 0.01 * rng.normal(size=(240, 5))
    data = Training(name, answers, np.ones(240), *[sources.astype(str)] * 2)
    leaking = Training(name, answers, np.ones(240), *[np.arange(240).astype(str)] * 2)
    for kernel in ("linear", "rbf"):
        apart = predict_held_out(data, [*NAMES, "more"], FitSettings(kernel=kernel))
        assert compute_credit(apart.margins[SVM], answers).mean() < 0.65
    together = predict_held_out(leaking, [*NAMES, "more"], FitSettings(kernel="rbf"))
    assert compute_credit(together.margins[SVM], answers).mean() > 0.9  # the test can fail


def test_every_method_is_compared_on_the_same_pairs(data: Training) -> None:
    held_out = predict_held_out(data, NAMES, QUICK)
    assert set(held_out.margins) == {SIDE, *NAMES, LOGISTIC, BOOSTING, SVM}
    table = compare_methods(held_out.margins, data).set_index("method")
    assert table.loc[SVM, "accuracy"] > table.loc["good", "accuracy"] > table.loc["bad", "accuracy"]
    assert table.loc["good", "accuracy"] == np.mean((data.differences[:, 0] > 0) == (data.p_a > 0.5))
    assert (table["low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["high"]).all()
    assert table.loc[SVM, "svm_ahead"] == 0
    assert "beats the best single metric, good" in describe_against_best(table.reset_index(), NAMES)


def test_a_labeler_that_is_no_better_says_so(data: Training) -> None:
    perfect = {SVM: -(data.p_a - 0.5), "good": data.p_a - 0.5}
    said = describe_against_best(compare_methods(perfect, data), ["good"])
    assert "WORSE than the best single metric, good (1.000)" in said
    equal = {SVM: data.p_a - 0.5, "good": data.p_a - 0.5}
    assert "does NOT beat" in describe_against_best(compare_methods(equal, data), ["good"])


def test_credit_is_the_share_of_people() -> None:
    margin, p_a = np.array([1.0, -1.0, 0.0, 2.0]), np.array([0.75, 0.75, 1.0, 0.0])
    assert compute_credit(margin, p_a).tolist() == [0.75, 0.25, 0.5, 0.0]


def test_boosting_is_odd(data: Training) -> None:
    swapped = dataclasses.replace(data, differences=-data.differences)
    assert np.allclose(predict_boosting(data, data, 0), -predict_boosting(data, swapped, 0))


def test_an_interval_is_that_of_all_resamples_at_once() -> None:
    values = np.random.default_rng(5).normal(size=301)
    draws = np.random.default_rng(7).integers(0, 301, (1000, 301))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    assert bootstrap_mean(values, np.ones(301), np.arange(301), seed=7)[1:] == pytest.approx((low, high), rel=1e-12)


def test_the_interval_resamples_sources_not_pairs() -> None:
    """Ten pairs of one source are one draw: the interval is that of 4 sources, not of 40 pairs."""
    values = np.repeat([1.0, 0.0, 1.0, 0.0], 10)
    mean, low, high = bootstrap_mean(values, np.ones(40), np.repeat(list("abcd"), 10))
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    apart = bootstrap_mean(values, np.ones(40), np.arange(40).astype(str))
    assert apart[1] > 0.3
    assert apart[2] < 0.7
    assert np.isnan(bootstrap_mean(values, np.ones(40), np.full(40, "one"))[1:]).all()
    assert np.isnan(bootstrap_mean(np.zeros(0), np.zeros(0), np.zeros(0))).all()


def test_coverage_takes_the_surest_first() -> None:
    p_a = np.array([0.99, 0.02, 0.9, 0.6])
    data = Training(np.zeros((4, 1)), np.array([1.0, 0.0, 0.0, 0.0]), np.ones(4), *[np.array(list("abcd"))] * 2)
    table = compute_coverage(p_a, data).set_index("coverage")
    assert table.loc[0.5, "accuracy"] == 1.0
    assert table.loc[0.5, "threshold"] == 0.98
    assert table.loc[1.0, "accuracy"] == 0.5


def test_calibration_by_hand() -> None:
    p_a = np.array([0.8] * 10)
    data = Training(np.zeros((10, 1)), np.array([1.0] * 6 + [0.0] * 4), np.ones(10), *[np.arange(10).astype(str)] * 2)
    curve, error, brier = compute_calibration(p_a, data.p_a, data.weight, data.sources)
    assert curve["n"].sum() == 10
    assert brier == pytest.approx((6 * 0.04 + 4 * 0.64) / 10)
    # every bin says 0.8; bins of one or two pairs are all right or all wrong, or half
    assert error == pytest.approx((curve["n"] * (curve["accuracy"] - 0.8).abs()).sum() / 10)


def test_importance_finds_the_planted_metric(data: Training) -> None:
    held_out = predict_held_out(data, NAMES, QUICK)
    everything = np.ones(len(data), dtype=bool)
    table = compute_importance(held_out, data, everything, NAMES).set_index("metric")
    assert set(table.index[:2]) == {"good", "bad"}
    assert table.loc["good", "low"] > 0.1
    assert abs(table.loc["none", "loss"]) < 0.02


def test_the_learning_curve_rises(data: Training) -> None:
    everything = np.ones(len(data), dtype=bool)
    curve = compute_learning_curve(data, fit_labeler(data, QUICK), everything, QUICK)
    assert curve["labels"].is_monotonic_increasing
    assert curve["labels"].iloc[-1] == 240  # four of five folds of 300
    assert curve["accuracy"].iloc[-1] > curve["accuracy"].iloc[0]
    assert isinstance(curve, pd.DataFrame)


def test_a_share_that_is_the_same_everywhere_is_not_certain() -> None:
    low = 0.025 ** (1 / 10)  # ten of ten right has this chance of happening once in forty times
    sources = np.repeat(np.arange(10), 3)
    assert bootstrap_share(np.ones(30), np.ones(30), sources) == pytest.approx((1, low, 1))
    assert bootstrap_share(np.zeros(30), np.ones(30), sources) == pytest.approx((0, 0, 1 - low))
    one_of_two = np.sqrt(0.975)  # neither, or both, of two at this chance
    assert exact_interval(0.5, 2) == pytest.approx((1 - one_of_two, one_of_two))
    values = (np.arange(30) % 2).astype(float)
    assert bootstrap_share(values, np.ones(30), sources) == bootstrap_mean(values, np.ones(30), sources)
    assert np.isnan(bootstrap_share(np.ones(3), np.ones(3), np.zeros(3))[1:]).all()
