"""Compute how often predictions equal people's answers, with intervals by source, and how well they are calibrated.

Of labelers and of scorers alike. Arrays in, numbers out; p_a is the probability that a is better, and in a label the
share of people's answers for a, a tie being one half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[Any]

RESAMPLES = 1000
RESAMPLES_AT_ONCE = 50
"""So that memory grows with the sources alone."""
CALIBRATION_BINS = 8
SAME = 1e-9


def compute_credit(margin: Array, p_a: Array) -> Array:
    """(n,) share of people's answers that a prediction equals; one half for a margin of zero."""
    return np.where(margin == 0, 0.5, np.where(margin > 0, p_a, 1 - p_a))


def bootstrap_mean(values: Array, weight: Array, sources: Array, seed: int = 0) -> tuple[float, float, float]:
    """(weighted mean, low, high): 95 % interval from resampling sources; NaN bounds below two sources."""
    if len(values) == 0 or weight.sum() == 0:
        return float("nan"), float("nan"), float("nan")
    mean = float(np.average(values, weights=weight))
    _, inverse = np.unique(sources, return_inverse=True)
    n_sources = int(inverse.max()) + 1
    if n_sources < 2:
        return mean, float("nan"), float("nan")
    sums = np.bincount(inverse, weights=values * weight), np.bincount(inverse, weights=weight)
    rng, means = np.random.default_rng(seed), np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, RESAMPLES_AT_ONCE):  # the same draws as all at once
        part = means[start : start + RESAMPLES_AT_ONCE]
        draws = rng.integers(0, n_sources, (len(part), n_sources))
        with np.errstate(invalid="ignore"):
            part[:] = sums[0][draws].sum(axis=1) / sums[1][draws].sum(axis=1)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return mean, float(low), float(high)


def bootstrap_share(shares: Array, weight: Array, sources: Array, seed: int = 0) -> tuple[float, float, float]:
    """As `bootstrap_mean`, of values in [0, 1]; where resampling moves nothing, the interval is `exact_interval`'s."""
    mean, low, high = bootstrap_mean(shares, weight, sources, seed)
    return mean, *((low, high) if not high - low < SAME else exact_interval(mean, len(np.unique(sources))))


def exact_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n sources, for where all agree: resampling them says then that it is certain.

    Source: Clopper & Pearson 1934.
    """
    from scipy.stats import beta

    right = share * n
    low = float(beta.ppf(0.025, right, n - right + 1)) if right > 0 else 0.0
    return low, float(beta.ppf(0.975, right + 1, n - right)) if right < n else 1.0


def compute_wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a share; (NaN, NaN) for n = 0."""
    if n == 0:
        return float("nan"), float("nan")
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def compute_calibration(
    p_a: Array, label: Array, weight: Array, sources: Array, seed: int = 0
) -> tuple[pd.DataFrame, float, float]:
    """(reliability curve, expected calibration error, Brier score) of probabilities.

    The curve has CALIBRATION_BINS bins of equally many pairs by confidence max(p_a, 1 − p_a), which is all there is to
    see, as the answers of a swapped pair mirror it: confidence, accuracy, low, high, n. The error is the mean distance
    of the two, weighted by pairs; the Brier score is the mean of (p_a − label)², 0.25 for an indifferent labeler.
    """
    confidence, credit = np.maximum(p_a, 1 - p_a), compute_credit(p_a - 0.5, label)
    rows, error = [], 0.0
    for chosen in np.array_split(np.argsort(confidence, kind="stable"), CALIBRATION_BINS):
        if len(chosen) == 0:
            continue
        own = weight[chosen]
        mean_confidence = float(np.average(confidence[chosen], weights=own))
        interval = bootstrap_share(credit[chosen], own, sources[chosen], seed)
        rows.append((mean_confidence, *interval, len(chosen)))
        error += abs(interval[0] - mean_confidence) * float(own.sum() / weight.sum())
    brier = float(np.average((p_a - label) ** 2, weights=weight))
    return pd.DataFrame(rows, columns=["confidence", "accuracy", "low", "high", "n"]), error, brier
