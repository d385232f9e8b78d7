"""Train an SVM on differences of metric vectors: it predicts which of two images a person would choose.

Arrays in, labels out; nothing here knows the database. Swapping the images flips every answer exactly: the SVM is
trained on both orders of each pair, its intercept is dropped, and its decision function is made odd (`compute_margin`).
A label that people disagree on, ties too, is trained as both answers, each weighted by its probability.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GroupKFold
from sklearn.svm import SVC, LinearSVC
from threadpoolctl import threadpool_limits

from annotate.labeler.settings import FitSettings
from db.errors import UserError
from metrics.lists import Column

Array = npt.NDArray[Any]
T = TypeVar("T")
R = TypeVar("R")

MIN_LABELS = 30
MIN_SOURCES = 5
MAX_SELECTION_LABELS = 800
"""Labels on which kernel, C and gamma are chosen; of more, a part drawn by source."""
MAX_RBF_LABELS = 3_000
"""Labels that an RBF SVM is trained on, since its cost grows with their square; of more, a part drawn by source."""
INNER_FOLDS = 4
LINEAR_C = (0.001, 0.01, 0.1, 1.0)
RBF_C = (0.1, 1.0, 10.0)
RBF_SPREAD = (0.1, 0.3, 1.0)
"""gamma times the number of columns that vary."""
HARD = 1e8
"""C of a margin that admits no exception: those of the squared hinge stand in the kernel's diagonal."""
BLOCK = 256
"""Pairs whose kernel values are computed at once: small enough to stay in the processor's cache."""


@dataclass(frozen=True)
class Training:
    """Labels: differences (n, d) of oriented values a − b, p_a (n,) in [0, 1], weight (n,) > 0, sources, groups (n,).

    A group is the person in the photo where known, else the photo itself.
    """

    differences: Array
    p_a: Array
    weight: Array
    sources: Array
    groups: Array

    def __len__(self) -> int:
        return len(self.p_a)

    def part(self, chosen: Array) -> Training:
        """The rows of a mask or of indices."""
        columns = (self.differences, self.p_a, self.weight, self.sources, self.groups)
        return Training(*(column[chosen] for column in columns))

    @property
    def clusters(self) -> Array:
        """(n,) what is kept whole in folds and resampling: the person; where all are of one, the photo, then the pair.

        The last two are for choosing parameters within a fold that leaves a single person. A report on one person's
        photos says that it knows of no other (`annotate.labeler.fit`).
        """
        several = (by for by in (self.groups, self.sources) if len(np.unique(by)) > 1)
        return next(several, np.arange(len(self)))


@dataclass(frozen=True)
class Labeler:
    """A fitted SVM with all that its answers need.

    Its margin is odd in the differences z = (a − b) / scale: for a linear kernel z · vectors[0], for an RBF kernel
    sum_i coefficients_i (k(z, v_i) − k(z, −v_i)) with k(z, v) = exp(−gamma |z − v|²).
    """

    columns: tuple[Column, ...]
    kernel: Literal["linear", "rbf"]
    c: float
    gamma: float
    scale: Array
    """(d,) root mean square of the training differences; infinite for a column that never differs."""
    vectors: Array
    """(m, d) support vectors, one for each mirrored pair of them; (1, d) for a linear kernel."""
    coefficients: Array
    """(m,)"""
    slope: float
    """p_a = 1 / (1 + exp(−slope · margin)), Platt's calibration without intercept, fitted on held-out folds."""


@dataclass(frozen=True)
class Parameters:
    """Hyperparameters of an SVM."""

    kernel: Literal["linear", "rbf"]
    c: float
    spread: float = 0.0


def check_training(data: Training) -> None:
    """Check that a labeler can be fitted at all.

    Raises:
        UserError: too few labels or sources, or labels that do not differ.
    """
    decided = data.p_a != 0.5
    n, sources = int(decided.sum()), len(np.unique(data.sources[decided]))
    if n < MIN_LABELS:
        raise UserError(
            f"Only {n} human labels without ties, measured and of the train split; the labeler needs {MIN_LABELS}. "
            f"Judge {MIN_LABELS - n} more pairs."
        )
    if sources < MIN_SOURCES:
        raise UserError(
            f"The {n} human labels are of {sources} photos; the labeler needs {MIN_SOURCES}, to be tested on photos "
            "that it has not seen. Judge pairs of other photos."
        )
    if len(np.unique(data.p_a[decided] > 0.5)) == 1:
        raise UserError(
            f"All {n} human labels prefer {'a' if data.p_a[decided][0] > 0.5 else 'b'}; which candidate is a is drawn "
            "at random, so these answers do not come from comparing. Check who judged them on the Report page."
        )
    if not np.any(np.abs(data.differences) > 0):
        raise UserError("All metric values are equal within each pair; there is nothing to learn from.")


def fit_labeler(data: Training, settings: FitSettings, columns: tuple[Column, ...] = ()) -> Labeler:
    """Choose kernel, C and gamma by grouped cross-validation, fit on all of `data`, calibrate on the held-out folds.

    Deterministic: the same data and settings give the same labeler.

    Args:
        columns: what the columns of `data.differences` are; kept with the labeler.
    """
    selection = draw_by_source(data, MAX_SELECTION_LABELS, settings.seed)
    grid = [p for p in parameter_grid() if settings.kernel in ("auto", p.kernel)]
    margins = run_threads(lambda p: cross_margins(selection, p, settings.seed), grid)
    losses = [compute_log_loss(margin, selection, fit_slope(margin, selection)) for margin in margins]
    best = int(np.argmin(losses))
    # The slope decides what is sure enough to be labelled: it is taken from all labels, not from the selection alone,
    # whose chance would move the final labeler's certainty away from that of the folds which set the threshold.
    margin = margins[best] if selection is data else cross_margins(data, grid[best], settings.seed)
    return replace(fit_svm(data, grid[best]), columns=tuple(columns), slope=fit_slope(margin, data))


def run_threads(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The work on each item, on as many threads as there are cores: numpy and libsvm release the interpreter's lock.

    BLAS and OpenMP keep to one thread meanwhile; their own would fight these.
    """
    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, items))


def parameter_grid() -> list[Parameters]:
    """All parameters that are tried, the simplest first, so that a draw goes to it."""
    linear = [Parameters("linear", c) for c in LINEAR_C]
    return linear + [Parameters("rbf", c, spread) for spread in RBF_SPREAD for c in RBF_C]


def draw_by_source(data: Training, most: int, seed: int) -> Training:
    """At most `most` rows: those of whole sources in a drawn order, as many as fit."""
    if len(data) <= most:
        return data
    names, inverse = np.unique(data.sources, return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(names))[inverse]
    order = np.argsort(place, kind="stable")
    return data.part(np.sort(order[:most]))


def split_folds(data: Training, folds: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """(training rows, held-out rows) of each fold; a person's photos are in one fold only (`Training.clusters`)."""
    clusters = data.clusters
    splitter = GroupKFold(n_splits=min(folds, len(np.unique(clusters))), shuffle=True, random_state=seed)
    yield from splitter.split(data.differences, groups=clusters)


def cross_margins(data: Training, parameters: Parameters, seed: int, folds: int = INNER_FOLDS) -> Array:
    """(n,) margin of each pair by an SVM that saw no photo of its person."""
    margins = np.zeros(len(data))
    for train, held_out in split_folds(data, folds, seed):
        margins[held_out] = compute_margin(fit_svm(data.part(train), parameters), data.differences[held_out])
    return margins


def fit_svm(data: Training, parameters: Parameters) -> Labeler:
    """One SVM with given parameters, not calibrated (slope 1).

    Both kernels take the squared hinge loss, whose optimum follows the share of people who prefer a; the plain hinge
    only asks for its side and is worse on votes that are hardly more certain than a coin (`experiments/votes.py`).
    Weights are scaled to a mean of one, so that C means the same whatever their unit.
    """
    if parameters.kernel == "rbf":
        data = draw_by_source(data, MAX_RBF_LABELS, seed=0)
    weight = data.weight / data.weight.mean()
    scale = np.sqrt(np.average(data.differences**2, axis=0, weights=weight))
    scale[scale == 0] = np.inf
    rows, answers, weights = mirror(data.differences / scale, data.p_a, weight)
    if parameters.kernel == "linear":
        svm = LinearSVC(C=parameters.c, loss="squared_hinge", dual=False, fit_intercept=False)
        svm.fit(rows, answers, sample_weight=weights)
        return Labeler((), "linear", parameters.c, 0.0, scale, svm.coef_, np.ones(1), 1.0)
    gamma = parameters.spread / max(1, int(np.isfinite(scale).sum()))
    vectors, coefficients = fit_rbf(rows, answers, weights, parameters.c, gamma)
    return Labeler((), "rbf", parameters.c, gamma, scale, vectors, coefficients, 1.0)


def fit_rbf(rows: Array, answers: Array, weights: Array, c: float, gamma: float) -> tuple[Array, Array]:
    """(support vectors, coefficients) of an RBF SVM with squared hinge loss, as `Labeler` keeps them.

    The squared hinge is the hard margin with 1 / (2 C weight) added to the kernel's diagonal.
    Source: Cortes & Vapnik, Support-vector networks, 1995, and Shawe-Taylor & Cristianini, Further results on the
    margin distribution, 1999.
    """
    kernel = rbf_kernel(rows, gamma=gamma)
    kernel[np.diag_indices(len(rows))] += 1 / (2 * c * weights)
    svm = SVC(kernel="precomputed", C=HARD, cache_size=500).fit(kernel, answers)
    return fold_mirrored(rows[svm.support_], svm.dual_coef_[0])


def mirror(z: Array, p_a: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Both orders of each pair with both answers: rows (m, d), answers (m,) ±1, weights (m,) > 0."""
    rows = np.concatenate([z, -z, z, -z])
    answers = np.concatenate([np.full(len(z), sign) for sign in (1.0, -1.0, -1.0, 1.0)])
    weights = np.concatenate([weight * p_a, weight * p_a, weight * (1 - p_a), weight * (1 - p_a)])
    return rows[weights > 0], answers[weights > 0], weights[weights > 0]


def fold_mirrored(vectors: Array, coefficients: Array) -> tuple[Array, Array]:
    """The odd part of an RBF expansion over vectors of both orders, as one over a vector of each mirrored two."""
    first = np.argmax(vectors != 0, axis=1)
    sign = np.sign(vectors[np.arange(len(vectors)), first])
    folded, inverse = np.unique(vectors * sign[:, None] + 0.0, axis=0, return_inverse=True)
    sums = np.bincount(inverse.ravel(), weights=0.5 * sign * coefficients, minlength=len(folded))
    return folded[sums != 0], sums[sums != 0]


def compute_margin(labeler: Labeler, differences: Array) -> Array:
    """(n,) margins of differences (n, d): positive where a is preferred, exactly odd, NaN where a value is missing."""
    z = differences / labeler.scale
    if labeler.kernel == "linear":
        margin: Array = z @ labeler.vectors[0]
        return margin
    if len(labeler.vectors) == 0:
        return np.zeros(len(z))
    squares = (labeler.vectors**2).sum(axis=1, keepdims=True)
    # One product gives 2 gamma z·v − gamma |z|² − gamma |v|², the exponent of the kernel.
    right = np.hstack([labeler.vectors, np.ones_like(squares), -labeler.gamma * squares]).T.copy()

    def block(start: int) -> Array:
        rows = z[start : start + BLOCK]
        norms = -labeler.gamma * (rows**2).sum(axis=1, keepdims=True)
        total: Array = np.zeros(len(rows))
        for sign in (1.0, -1.0):
            exponents = np.hstack([sign * 2 * labeler.gamma * rows, norms, np.ones_like(norms)]) @ right
            total = total + sign * (np.exp(exponents, out=exponents) @ labeler.coefficients)
        return total

    if len(z) <= BLOCK:
        return block(0)
    margins: Array = np.concatenate(run_threads(block, range(0, len(z), BLOCK)))
    return margins


def compute_p_a(labeler: Labeler, differences: Array) -> Array:
    """(n,) probability that a is preferred; of the swapped pair exactly one minus it; NaN where a value is missing."""
    return apply_slope(compute_margin(labeler, differences), labeler.slope)


def apply_slope(margin: Array, slope: Array | float) -> Array:
    """(n,) probabilities of margins; of −margin exactly one minus it."""
    sure = expit(np.abs(margin) * slope)  # 0.5 … 1, from which one minus it is exact
    p_a: Array = np.where(margin >= 0, sure, 1.0 - sure)
    return p_a


def fit_slope(margin: Array, data: Training) -> float:
    """The slope ≥ 0 of the largest likelihood: Platt's calibration with one parameter.

    Source: Platt, Probabilistic outputs for support vector machines, 1999; no intercept, so that swapping flips.
    """
    size = float(np.sqrt(np.mean(margin**2)))
    if size == 0:
        return 0.0
    found = minimize_scalar(
        lambda log_slope: compute_log_loss(margin, data, float(np.exp(log_slope)) / size),
        bounds=(-8.0, 4.0),
        method="bounded",
        options={"xatol": 1e-6},
    )
    slope = float(np.exp(found.x)) / size
    return slope if compute_log_loss(margin, data, slope) < compute_log_loss(margin, data, 0.0) else 0.0


def compute_log_loss(margin: Array, data: Training, slope: float) -> float:
    """Mean negative log-likelihood of the labels, in nats; log 2 for an indifferent labeler."""
    scaled = slope * margin
    losses = -(data.p_a * log_expit(scaled) + (1 - data.p_a) * log_expit(-scaled))
    return float(np.average(losses, weights=data.weight))


def fit_bag(data: Training, labeler: Labeler, n_labelers: int = 10, seed: int = 0) -> list[Labeler]:
    """Labelers of the same parameters, each fitted on sources drawn with replacement.

    Source: Breiman, Bagging predictors, 1996; here whole sources are drawn, since pairs of one photo go together.
    """
    varying = max(1, int(np.isfinite(labeler.scale).sum()))
    parameters = Parameters(labeler.kernel, labeler.c, labeler.gamma * varying)
    data = draw_by_source(data, MAX_SELECTION_LABELS, seed)
    names, inverse = np.unique(data.sources, return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = [np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)) for _ in range(n_labelers)]

    def fit(times: Array) -> Labeler:
        drawn = data.part(times[inverse] > 0)
        weighted = replace(drawn, weight=drawn.weight * times[inverse][times[inverse] > 0])
        return replace(fit_svm(weighted, parameters), columns=labeler.columns, slope=labeler.slope)

    return run_threads(fit, draws)
