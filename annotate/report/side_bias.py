"""Compute how much more often the left image is chosen than chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from metrics.accuracy import compute_wilson
from metrics.plackett_luce import Floats
from metrics.votes import MIN_SOURCES, SAME_SCORE, count_by_source, resample_sources

MIN_DECISIVE = 20
"""Answers for one side below which the side bias is not estimated."""
SIDE_BIAS_C = 100.0
"""Weak ridge penalty of the side bias fit: a normal prior of 10 logits on every coefficient."""


@dataclass(frozen=True)
class SideBias:
    """Estimate of how much the left side draws answers. Intervals are 95 %; NaN: not enough data."""

    n_decisive: int
    left_share: float
    """Share of left among the answers that are not ties; interval by Wilson."""
    left_share_low: float
    left_share_high: float
    logit: float
    """Log odds that being left adds, beside the methods' strengths; 0 without bias. Interval by bootstrap."""
    logit_low: float
    logit_high: float


def compute_side_bias(votes: pd.DataFrame, *, n_resamples: int = 1000, seed: int = 0) -> SideBias:
    """The side bias of all votes together: Bradley-Terry as logistic regression with a constant for 'left'.

    Fitted by scikit-learn with a ridge penalty of C = SIDE_BIAS_C; ties are left out. The interval resamples sources.
    """
    decisive = votes[votes["choice"] != "tie"]
    chose_left = (decisive["choice"] == decisive["shown_left"]).to_numpy()
    n, n_left = len(decisive), int(chose_left.sum())
    low, high = compute_wilson(n_left, n)
    nan = float("nan")
    share = n_left / n if n else nan
    if n < MIN_DECISIVE or n_left in (0, n):
        return SideBias(n, share, low, high, nan, nan, nan)
    left_is_a = (decisive["shown_left"] == "a").to_numpy()
    left = np.where(left_is_a, decisive["method_a"], decisive["method_b"])
    right = np.where(left_is_a, decisive["method_b"], decisive["method_a"])
    keys = pd.DataFrame({"left": left, "right": right, "chose_left": chose_left})
    kinds, by_source = count_by_source(keys, decisive["source"])
    methods = sorted(set(left) | set(right))
    features = np.ones((len(kinds), len(methods) + 1))
    for place, name in enumerate(methods):
        features[:, place] = (kinds["left"] == name).astype(float) - (kinds["right"] == name).astype(float)
    answers = kinds["chose_left"].to_numpy()
    logit = _fit_left(features, answers, by_source.sum(axis=0))
    interval = (nan, nan)
    if by_source.shape[0] >= MIN_SOURCES and n_resamples > 0:
        drawn = [_fit_left(features, answers, weights) for weights in resample_sources(by_source, n_resamples, seed)]
        low_end, high_end = np.nanpercentile(drawn, [2.5, 97.5])
        # Where every source says the same, a width of zero would say that the bias is known exactly.
        interval = (low_end, high_end) if high_end - low_end > SAME_SCORE else (nan, nan)
    return SideBias(n, share, low, high, logit, float(interval[0]), float(interval[1]))


def _fit_left(features: Floats, answers: npt.NDArray[np.bool_], weights: Floats) -> float:
    """The coefficient of the last column; NaN where only one side was ever chosen."""
    from sklearn.linear_model import LogisticRegression

    seen = weights > 0
    if len(set(answers[seen].tolist())) < 2:
        return float("nan")
    model = LogisticRegression(C=SIDE_BIAS_C, fit_intercept=False, solver="newton-cholesky")
    model.fit(features[seen], answers[seen], sample_weight=weights[seen])
    return float(model.coef_[0, -1])
