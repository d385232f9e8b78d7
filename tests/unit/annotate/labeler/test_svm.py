"""The labeler: odd to the last bit, calibrated, honest on noise; its thresholds by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import SVC

from annotate.labeler.settings import FitSettings
from annotate.labeler.svm import (
    BLOCK,
    Labeler,
    Parameters,
    Training,
    apply_slope,
    check_training,
    compute_log_loss,
    compute_margin,
    compute_p_a,
    draw_by_source,
    fit_bag,
    fit_labeler,
    fit_slope,
    fit_svm,
    fold_mirrored,
    mirror,
    split_folds,
)
from db.errors import UserError

QUICK = FitSettings(kernel="linear")
MakeTraining = Callable[..., Training]


@pytest.fixture(scope="module")
def data(make_training: MakeTraining) -> Training:
    return make_training(160)


@pytest.fixture(scope="module", params=["linear", "rbf"])
def labeler(request: pytest.FixtureRequest, data: Training) -> Labeler:
    return fit_labeler(data, FitSettings(kernel=request.param))


@given(
    seed=st.integers(0, 10**6), n=st.sampled_from([1, 7, BLOCK, 3 * BLOCK + 5]), size=st.sampled_from([1e-9, 1, 1e6])
)
@settings(max_examples=25, deadline=None)
def test_swapping_flips_the_answer_exactly(labeler: Labeler, seed: int, n: int, size: float) -> None:
    differences = size * np.random.default_rng(seed).normal(size=(n, 4))
    p_a, swapped = compute_p_a(labeler, differences), compute_p_a(labeler, -differences)
    assert np.array_equal(swapped, 1.0 - p_a)
    assert np.array_equal(p_a, 1.0 - swapped)
    assert np.array_equal(compute_margin(labeler, -differences), -compute_margin(labeler, differences))


def test_training_on_swapped_pairs_gives_the_same_answers(data: Training) -> None:
    swapped = Training(-data.differences, 1 - data.p_a, data.weight, data.sources, data.groups)
    for kernel in ("linear", "rbf"):
        parameters = Parameters(kernel, 1.0, 0.3)
        one, other = (compute_margin(fit_svm(part, parameters), data.differences) for part in (data, swapped))
        assert np.allclose(one, other, atol=1e-3 * np.abs(one).max())


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_constant_column_changes_nothing(data: Training, kernel: str) -> None:
    wider = dataclasses.replace(data, differences=np.insert(data.differences, 2, 0.0, axis=1))
    plain, with_constant = (fit_labeler(part, FitSettings(kernel=kernel)) for part in (data, wider))
    assert np.isinf(with_constant.scale[2])
    assert np.allclose(compute_p_a(plain, data.differences), compute_p_a(with_constant, wider.differences), atol=1e-9)


def test_the_unit_of_a_column_changes_nothing(data: Training) -> None:
    scaled = dataclasses.replace(data, differences=data.differences * [1e3, 1e-3, 1.0, 7.0])
    one, other = (compute_p_a(fit_labeler(part, QUICK), part.differences) for part in (data, scaled))
    assert np.allclose(one, other, atol=1e-6)


def test_it_learns_the_taste_and_means_its_probabilities(
    labeler: Labeler, make_training: MakeTraining, taste: np.ndarray
) -> None:
    unseen = make_training(4000, seed=1)
    p_a = compute_p_a(labeler, unseen.differences)
    best = np.mean((unseen.differences @ taste > 0) == (unseen.p_a > 0.5))
    assert np.mean((p_a > 0.5) == (unseen.p_a > 0.5)) > best - 0.03
    sure = np.maximum(p_a, 1 - p_a)
    right = (p_a > 0.5) == (unseen.p_a > 0.5)
    assert abs(right[sure > 0.8].mean() - sure[sure > 0.8].mean()) < 0.06


def test_the_rbf_margin_is_that_of_scikit_learn(make_training: MakeTraining) -> None:
    """With hinge loss, whose support vectors scikit-learn can evaluate itself."""
    data = make_training(120)
    rows, answers, weights = mirror(data.differences, data.p_a, data.weight)
    svm = SVC(kernel="rbf", gamma=0.2, C=1.0).fit(rows, answers, sample_weight=weights)
    folded = fold_mirrored(svm.support_vectors_, svm.dual_coef_[0])
    assert len(folded[0]) < len(svm.support_vectors_)
    ours = Labeler((), "rbf", 1.0, 0.2, np.ones(4), *folded, slope=1.0)
    theirs = (svm.decision_function(data.differences) - svm.decision_function(-data.differences)) / 2
    assert np.allclose(compute_margin(ours, data.differences), theirs, atol=1e-9)


def test_squared_hinge_solves_what_it_says(make_training: MakeTraining) -> None:
    """At the optimum of ½|w|² + C Σ weight·max(0, 1 − y f)² its gradient, 2 C weight·slack, is each coefficient."""
    data = make_training(40)
    fitted = fit_svm(data, Parameters("rbf", 0.5, 0.3))
    z = data.differences / fitted.scale
    sign = np.where(data.p_a > 0.5, 1.0, -1.0)
    slack = np.maximum(0, 1 - sign * compute_margin(fitted, data.differences))
    by_vector = {tuple(np.round(vector, 9)): c for vector, c in zip(fitted.vectors, fitted.coefficients, strict=True)}
    for row, y, of_row in zip(z, sign, slack, strict=True):
        first = np.sign(row[np.argmax(row != 0)])
        found = by_vector.get(tuple(np.round(row * first, 9)), 0.0) * first
        assert found == pytest.approx(y * 2 * 0.5 * of_row, abs=0.02)


def test_ties_and_votes_are_both_answers_by_their_share() -> None:
    rows, answers, weights = mirror(np.array([[1.0], [2.0]]), np.array([0.5, 1.0]), np.array([2.0, 3.0]))
    assert sorted(zip(rows[:, 0], answers, weights, strict=True)) == [
        (-2.0, -1.0, 3.0),
        (-1.0, -1.0, 1.0),
        (-1.0, 1.0, 1.0),
        (1.0, -1.0, 1.0),
        (1.0, 1.0, 1.0),
        (2.0, 1.0, 3.0),
    ]


def test_missing_values_give_no_answer(labeler: Labeler) -> None:
    differences = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, np.nan, 3.0, 4.0]])
    assert np.isnan(compute_p_a(labeler, differences)).tolist() == [False, True]


def test_the_slope_is_the_likeliest() -> None:
    margin = np.array([1.0, 1.0, 1.0, 1.0])
    data = Training(np.zeros((4, 1)), np.array([1.0, 1.0, 1.0, 0.0]), np.ones(4), *[np.array(list("abcd"))] * 2)
    slope = fit_slope(margin, data)  # three of four: logit 3/4 = log 3
    assert slope == pytest.approx(np.log(3), abs=1e-4)
    assert compute_log_loss(margin, data, 0.0) == pytest.approx(np.log(2))
    wrong = dataclasses.replace(data, p_a=np.array([0.0, 0.0, 0.0, 1.0]))
    assert fit_slope(margin, wrong) == 0.0
    assert apply_slope(np.array([-2.0, 0.0, 2.0]), 0.0).tolist() == [0.5, 0.5, 0.5]


def test_no_source_is_on_both_sides_of_a_fold(data: Training) -> None:
    seen = np.zeros(len(data), dtype=int)
    for train, held_out in split_folds(data, 5, seed=3):
        assert not set(data.sources[train]) & set(data.sources[held_out])
        seen[held_out] += 1
    assert (seen == 1).all()


def test_parts_are_drawn_by_whole_sources(data: Training) -> None:
    part = draw_by_source(data, 43, seed=0)
    assert len(part) == 43
    counts = [np.sum(part.sources == name) for name in np.unique(part.sources)]
    assert sorted(counts) == [3, *[8] * 5]
    assert draw_by_source(data, 1000, seed=0) is data


def test_the_same_data_give_the_same_labeler(data: Training) -> None:
    one, other = fit_labeler(data, FitSettings()), fit_labeler(data, FitSettings())
    assert one.kernel == other.kernel
    assert np.array_equal(one.vectors, other.vectors)
    assert one.slope == other.slope


def test_a_bag_differs_and_agrees_on_the_clear_ones(labeler: Labeler, data: Training, taste: np.ndarray) -> None:
    bag = fit_bag(data, labeler, n_labelers=5, seed=0)
    p = np.array([compute_p_a(one, data.differences) for one in bag])
    assert p.std(axis=0).max() > 0
    clear = np.abs(data.differences @ taste) > 4
    assert ((p[:, clear] > 0.5) == (data.differences[clear] @ taste > 0)).mean() > 0.95


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"p_a": np.full(160, 0.5)}, "Only 0 human labels"),
        ({"p_a": np.ones(160)}, "All 160 human labels prefer a"),
        ({"sources": np.array(["one", "two"] * 80)}, "are of 2 photos"),
        ({"differences": np.zeros((160, 4))}, "nothing to learn from"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(data: Training, change: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_training(dataclasses.replace(data, **change))


def test_too_few_labels_say_how_many_more(make_training: MakeTraining) -> None:
    with pytest.raises(UserError, match=r"Only 12 human labels.*needs 30.*Judge 18 more"):
        check_training(make_training(12))
