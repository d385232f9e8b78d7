"""Measure a labeler on photos that it has not seen: against single metrics, other classifiers and people.

Arrays in, tables out. Every prediction here is of a pair whose person (the photo, where no person is known) was in no
training set of what predicted it, the choice of parameters and the calibration included (nested cross-validation).
Accuracy is the share of people's answers that a prediction equals; intervals are 95 %, from resampling those persons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from annotate.labeler.settings import BOOSTING, LOGISTIC, SIDE, SVM, FitSettings
from annotate.labeler.svm import (
    Labeler,
    Parameters,
    Training,
    apply_slope,
    compute_log_loss,
    compute_margin,
    draw_by_source,
    fit_labeler,
    fit_slope,
    fit_svm,
    mirror,
    run_threads,
    split_folds,
)
from metrics.accuracy import bootstrap_mean, bootstrap_share, compute_credit

Array = npt.NDArray[Any]

LOGISTIC_C = (0.01, 0.1, 1.0, 10.0)
COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))
SHUFFLES = 10
LEARNING_REPEATS = 4
SMALLEST_CURVE = 20


@dataclass(frozen=True)
class HeldOut:
    """Predictions of pairs by models that saw no photo of their person."""

    margins: dict[str, Array]
    """(n,) by method; positive where a is preferred."""
    p_a: Array
    """(n,) calibrated probabilities of the SVM, the calibration too from other people's photos."""
    labelers: list[tuple[Labeler, Array]]
    """The SVM of each fold with the rows that it was held out from."""


def predict_held_out(data: Training, names: Sequence[str], settings: FitSettings) -> HeldOut:
    """Train every method on the people outside of each fold and predict the fold.

    Args:
        names: of the columns; each is a method of its own, the higher value winning.
    """
    margins: dict[str, Array] = {}
    p_a, labelers = np.zeros(len(data)), []
    for train, held_out in split_folds(data, settings.folds, settings.seed):
        labeler = fit_labeler(data.part(train), settings)
        labelers.append((labeler, held_out))
        for name, margin in predict_methods(data.part(train), data.part(held_out), names, labeler, settings).items():
            margins.setdefault(name, np.zeros(len(data)))[held_out] = margin
        p_a[held_out] = apply_slope(margins[SVM][held_out], labeler.slope)
    return HeldOut(margins, p_a, labelers)


def predict_methods(
    train: Training, test: Training, names: Sequence[str], labeler: Labeler, settings: FitSettings
) -> dict[str, Array]:
    """(n,) margins of `test` by each method: the majority side, every column alone, the SVM, two other classifiers.

    The last two are left out with `settings.quick`.
    """
    side = np.sign(np.average(train.p_a - 0.5, weights=train.weight))
    margins = {
        SIDE: np.full(len(test), side),
        **{name: test.differences[:, at] for at, name in enumerate(names)},
        SVM: compute_margin(labeler, test.differences),
    }
    if not settings.quick:
        margins[LOGISTIC] = predict_logistic(train, test, settings.seed)
        margins[BOOSTING] = predict_boosting(train, test, settings.seed)
    return margins


def predict_logistic(train: Training, test: Training, seed: int) -> Array:
    """(n,) log odds by logistic regression without intercept, C chosen by grouped cross-validation."""

    def fit(part: Training, c: float) -> Callable[[Array], Array]:
        scale = np.sqrt(np.average(part.differences**2, axis=0, weights=part.weight))
        scale[scale == 0] = np.inf
        rows, answers, weights = mirror(part.differences / scale, part.p_a, part.weight / part.weight.mean())
        model = LogisticRegression(C=c, fit_intercept=False, max_iter=1000).fit(rows, answers, sample_weight=weights)
        return lambda differences: np.asarray((differences / scale) @ model.coef_[0])

    selection = draw_by_source(train, 2000, seed)
    losses = []
    for c in LOGISTIC_C:
        margin = np.zeros(len(selection))
        for inside, outside in split_folds(selection, 4, seed):
            margin[outside] = fit(selection.part(inside), c)(selection.differences[outside])
        losses.append(compute_log_loss(margin, selection, fit_slope(margin, selection)))
    return fit(train, LOGISTIC_C[int(np.argmin(losses))])(test.differences)


def predict_boosting(train: Training, test: Training, seed: int) -> Array:
    """(n,) log odds by gradient-boosted trees trained on both orders, made odd as the SVM is."""
    rows, answers, weights = mirror(train.differences, train.p_a, train.weight)
    model = HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=100, max_leaf_nodes=8, min_samples_leaf=10, early_stopping=False, random_state=seed
    )
    with threadpool_limits(1):  # so little data is slower on several
        model.fit(rows, answers, sample_weight=weights)
        there, back = (model.decision_function(sign * test.differences) for sign in (1, -1))
    return np.asarray(there - back) / 2


def compare_methods(margins: dict[str, Array], data: Training, seed: int = 0) -> pd.DataFrame:
    """A row per method, the best first: method, accuracy, low, high, and how far it is behind the SVM, with interval.

    The difference is taken on the same resampled people, so that its interval is narrower than the two alone.
    """
    svm = compute_credit(margins[SVM], data.p_a)
    rows = []
    for name, margin in margins.items():
        credit = compute_credit(margin, data.p_a)
        behind = bootstrap_mean(svm - credit, data.weight, data.clusters, seed)
        rows.append((name, *bootstrap_share(credit, data.weight, data.clusters, seed), *behind))
    columns = ["method", "accuracy", "low", "high", "svm_ahead", "svm_ahead_low", "svm_ahead_high"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("accuracy", ascending=False, kind="stable", ignore_index=True)


def compute_coverage(p_a: Array, data: Training, seed: int = 0) -> pd.DataFrame:
    """Accuracy of the most confident share of the pairs: coverage, threshold, accuracy, low, high, n."""
    confidence = np.maximum(p_a, 1 - p_a)
    credit, order = compute_credit(p_a - 0.5, data.p_a), np.argsort(-confidence, kind="stable")
    clusters = data.clusters
    rows = []
    for coverage in COVERAGES:
        n = max(1, round(coverage * len(order)))
        sure = order[:n]
        interval = bootstrap_share(credit[sure], data.weight[sure], clusters[sure], seed)
        rows.append((coverage, confidence[sure[-1]], *interval, n))
    return pd.DataFrame(rows, columns=["coverage", "threshold", "accuracy", "low", "high", "n"])


def compute_importance(
    held_out: HeldOut, data: Training, measured: Array, names: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """Compute the accuracy lost when one metric is shuffled among held-out pairs: metric, loss, low, high.

    Which image is a is drawn at random, so a shuffled difference comes back with a drawn sign.

    Args:
        measured: (n,) mask of the labels that may be used to measure accuracy.
    Source: Breiman, Random forests, 2001 (permutation importance), here on folds held out by person.
    """
    chosen = data.part(measured)
    base = compute_credit(held_out.margins[SVM], data.p_a)
    rng = np.random.default_rng(seed)
    rows = []
    for at, name in enumerate(names):
        shuffled = np.zeros(len(data))
        for labeler, fold in held_out.labelers:
            for _ in range(SHUFFLES):
                differences = data.differences[fold].copy()
                differences[:, at] = rng.permutation(differences[:, at]) * rng.choice([-1.0, 1.0], len(fold))
                shuffled[fold] += compute_credit(compute_margin(labeler, differences), data.p_a[fold]) / SHUFFLES
        loss = (base - shuffled)[measured]
        rows.append((name, *bootstrap_mean(loss, chosen.weight, chosen.clusters, seed)))
    table = pd.DataFrame(rows, columns=["metric", "loss", "low", "high"])
    return table.sort_values("loss", ascending=False, kind="stable", ignore_index=True)


def compute_learning_curve(data: Training, labeler: Labeler, measured: Array, settings: FitSettings) -> pd.DataFrame:
    """Held-out accuracy by number of labels trained on: labels, accuracy, low, high.

    The labeler's own parameters throughout; each size is drawn LEARNING_REPEATS times by source from the sources
    outside of the fold that is predicted, and the predictions' credits are averaged.

    Args:
        measured: (n,) mask of the labels that may be used to measure accuracy.
    """
    varying = max(1, int(np.isfinite(labeler.scale).sum()))
    parameters = Parameters(labeler.kernel, labeler.c, labeler.gamma * varying)
    folds = list(split_folds(data, settings.folds, settings.seed))
    largest = min(len(train) for train, _ in folds)
    steps = max(2, min(7, 1 + int(np.log2(max(2.0, largest / SMALLEST_CURVE)) * 1.5)))
    sizes = sorted({int(size) for size in np.geomspace(min(SMALLEST_CURVE, largest), largest, steps).round()})

    def predict(task: tuple[int, int, int]) -> Array:
        size, fold, repeat = task
        train, held_out = folds[fold]
        part = draw_by_source(data.part(train), size, seed=settings.seed + 1000 * repeat + fold)
        return compute_credit(compute_margin(fit_svm(part, parameters), data.differences[held_out]), data.p_a[held_out])

    tasks = [(size, fold, repeat) for size in sizes for fold in range(len(folds)) for repeat in range(LEARNING_REPEATS)]
    credits = {size: np.zeros(len(data)) for size in sizes}
    for (size, fold, _), credit in zip(tasks, run_threads(predict, tasks), strict=True):
        credits[size][folds[fold][1]] += credit / LEARNING_REPEATS
    chosen = data.part(measured)
    rows = [
        (size, *bootstrap_share(credits[size][measured], chosen.weight, chosen.clusters, settings.seed))
        for size in sizes
    ]
    return pd.DataFrame(rows, columns=["labels", "accuracy", "low", "high"])


def describe_learning(curve: pd.DataFrame) -> str:
    """One plain sentence: what the last doubling of the labels brought."""
    last = curve.iloc[-1]
    before = curve[curve["labels"] <= last["labels"] / 2]
    if before.empty:
        return f"{int(last['labels'])} labels are too few to say whether more would help; they usually do."
    gain = float(last["accuracy"] - before.iloc[-1]["accuracy"])
    noise = float(last["high"] - last["low"]) / 4  # about one standard error
    outlook = "more labels would help" if gain > noise else "more labels would hardly help" if gain < noise / 4 else ""
    return (
        f"From {int(before.iloc[-1]['labels'])} to {int(last['labels'])} labels accuracy changed by {gain:+.3f}"
        f" (standard error about {noise:.3f}): {outlook or 'more labels may help a little'}."
    )


def describe_against_best(table: pd.DataFrame, names: Sequence[str]) -> str:
    """One plain sentence: whether the SVM beats the best single metric, chosen with hindsight, on the same pairs."""
    singles = table[table["method"].isin(list(names))]
    best = singles.iloc[0]
    svm = float(table.loc[table["method"] == SVM, "accuracy"].iloc[0])
    gap = f"{best['svm_ahead']:+.3f} [{best['svm_ahead_low']:+.3f}, {best['svm_ahead_high']:+.3f}]"
    whom = f"the best single metric, {best['method']} ({best['accuracy']:.3f})"
    if best["svm_ahead_low"] > 0:
        return f"The SVM ({svm:.3f}) beats {whom}: {gap}."
    if best["svm_ahead_high"] < 0:
        return f"The SVM ({svm:.3f}) is WORSE than {whom}: {gap}. Label by that metric alone, or label more pairs."
    return f"The SVM ({svm:.3f}) does NOT beat {whom} beyond the interval: {gap}."
