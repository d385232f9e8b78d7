"""Choose the confidence from which a labeler labels, so that its labels keep the target accuracy.

Arrays in, a number out; the one place where a threshold is chosen, for the report of a fit and for labelling.

What is promised: of fits to answers such as these, at most a share of 1 − confidence labels below the target, where
accuracy is the share of people's answers that a label equals, over pairs drawn as the judged ones were, of people (or
photos) that were not judged. Nothing is promised of other methods or photos, nor of a part of the pairs alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom, t

Array = npt.NDArray[Any]

STEPS = 20
"""Shares of the answers that are tested, the surest first: 5 %, 10 %, … 100 %."""
FEWEST = 30
"""Answers in the first share that is tested: by fewer, a low target would fail for one wrong answer too many."""


def choose_threshold(
    certainty: Array, right: Array, weight: Array, groups: Array, target_accuracy: float, confidence: float
) -> float | None:
    """The lowest certainty from which on the target is kept with this confidence; None where none can be promised.

    Fixed-sequence testing: the surest share of the answers is tested first, then ever larger ones, each at level
    1 − confidence, and the first that fails ends it. So all tests together promise falsely as seldom as one. The first
    share is the smallest that passes with one wrong answer: a handful that passes only when all is right would end
    most sequences before they begin. Which shares are tested does not hang on the answers.

    Args:
        certainty: (n,) max(p_a, 1 − p_a) of each held-out answer, 0.5 … 1.
        right: (n,) share of people's answers that it equals, 0 … 1.
        weight: (n,) weights > 0, in any unit.
        groups: (n,) what answers go together by: the person in the photo, or the photo.
        target_accuracy, confidence: 0.5 … 1, neither included.
    Source: Angelopoulos, Bates, Candès, Jordan & Lei, Learn then Test, 2021 (fixed-sequence testing, algorithm 1).
    """
    likeness = compute_likeness(right - certainty, groups)
    ordered = np.sort(certainty)[::-1]
    smallest = max(FEWEST, count_smallest(target_accuracy, confidence))
    found = None
    for n in np.unique(np.ceil(len(ordered) * np.arange(1, STEPS + 1) / STEPS).astype(int)):
        if n < smallest:
            continue
        sure = certainty >= ordered[n - 1]
        if compute_lower_bound(right[sure], weight[sure], groups[sure], likeness, confidence) < target_accuracy:
            break
        found = float(ordered[n - 1])
    return found


def count_smallest(target_accuracy: float, confidence: float) -> int:
    """The fewest independent answers that keep the target with this confidence though one of them is wrong."""
    n = 2
    while binom.cdf(1, n, 1 - target_accuracy) > 1 - confidence:
        n += 1
    return n


def compute_lower_bound(right: Array, weight: Array, groups: Array, likeness: float, confidence: float) -> float:
    """One-sided lower confidence bound of a weighted share of answers that come in groups; 0 from a single group.

    The lower of two. One takes the sums of the groups as they scatter, with a t quantile. The other is the exact
    binomial bound on the number of answers that as many independent ones would be worth: where nearly all are right,
    the sums hardly scatter, and the first alone would be sure too soon.

    Args:
        likeness: intraclass correlation of the answers of a group, 0 … 1.
    Source: Korn & Graubard, Confidence intervals for proportions with small expected number of positive counts
        estimated from survey data, 1998; the variance of a ratio of sums as in Cochran, Sampling Techniques, 1977.
    """
    _, inverse = np.unique(groups, return_inverse=True)
    n_groups = int(inverse.max()) + 1
    if n_groups < 2:
        return 0.0
    mean = float(np.average(right, weights=weight))
    sums = np.bincount(inverse, weights=weight * (right - mean))
    deviation = float(np.sqrt(n_groups / (n_groups - 1) * (sums**2).sum()) / weight.sum())
    quantile = float(t.ppf(confidence, n_groups - 1))
    of_group = np.bincount(inverse, weights=weight)
    independent = weight.sum() ** 2 / ((1 - likeness) * (weight**2).sum() + likeness * (of_group**2).sum())
    worth = independent * (t.ppf(confidence, len(right) - 1) / quantile) ** 2
    exact = float(beta.ppf(1 - confidence, mean * worth, (1 - mean) * worth + 1)) if mean > 0 else 0.0
    return min(mean - quantile * deviation, exact)


def compute_likeness(residuals: Array, groups: Array) -> float:
    """Intraclass correlation of values in groups, 0 … 1, by the analysis of variance; 0 where no group has two.

    Source: Fleiss, The Design and Analysis of Clinical Experiments, 1986, chapter 1.
    """
    _, inverse, size = np.unique(groups, return_inverse=True, return_counts=True)
    n, n_groups = len(residuals), len(size)
    if n_groups < 2 or n == n_groups:
        return 0.0
    centred = residuals - residuals.mean()
    explained = float((np.bincount(inverse, weights=centred) ** 2 / size).sum())
    between = explained / (n_groups - 1)
    within = (float((centred**2).sum()) - explained) / (n - n_groups)
    usual_size = (n - (size**2).sum() / n) / (n_groups - 1)
    total = between + (usual_size - 1) * within
    return float(np.clip((between - within) / total, 0, 1)) if total > 0 else 0.0
