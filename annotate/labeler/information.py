"""Order tasks so that those that tell most of the methods' scale are judged next.

Of every waiting task it is known what its answer would add to what is known of the scores; the tasks are taken so that
those of one round join all methods in a tree before any two meet again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from metrics.plackett_luce import fit, tally_answers

Array = npt.NDArray[Any]

NODES = 15
"""Of the Gauss-Hermite rule over a difference of scores: exact to three digits for deviations up to 3."""


UNKNOWN_VARIANCE = 8.0
"""Of the score of a method that nobody judged: that of the virtual ties alone."""


def expected_gain(mean: Array, variance: Array) -> Array:
    """Nats that an answer is expected to tell of a difference of log odds, normal as given, by element.

    The entropy of the answer less its mean entropy where the difference is known (Lindley 1956), by Gauss-Hermite
    quadrature.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    p = 1 / (1 + np.exp(-(np.asarray(mean)[..., None] + np.sqrt(np.asarray(variance))[..., None] * nodes)))
    weights = weights / weights.sum()
    gain: Array = _entropy(p @ weights) - _entropy(p) @ weights
    return gain


def _entropy(p: Array) -> Array:
    inside = np.clip(p, 1e-12, 1 - 1e-12)
    return np.asarray(-inside * np.log(inside) - (1 - inside) * np.log1p(-inside))


def gain_of_pairs(scores: Array, covariance: Array) -> Array:
    """(M, M) `expected_gain` of every two methods, by the (M,) scores and their (M, M) covariance."""
    own = np.diag(covariance)
    return expected_gain(scores[:, None] - scores[None, :], own[:, None] + own[None, :] - 2 * covariance)


def estimate_scale(answers: pd.DataFrame, methods: Sequence[str]) -> tuple[Array, Array]:
    """((M,) scores, (M, M) covariance) of the methods; one that nobody judged has 0 and UNKNOWN_VARIANCE."""
    scores, covariance = np.zeros(len(methods)), np.eye(len(methods)) * UNKNOWN_VARIANCE
    tally = tally_answers(answers)
    known = [at for at, name in enumerate(tally.methods) if name in methods]
    at = [list(methods).index(tally.methods[place]) for place in known]
    if at:
        found = fit(tally)
        scores[at] = found.scores[known]
        covariance[np.ix_(at, at)] = np.linalg.inv(found.information)[np.ix_(known, known)]
    return scores, covariance


def rank_information(tasks: Array, gain: Array, count: int, rng: np.random.Generator) -> Array:
    """Indices of tasks, in rounds: each round walks a spanning tree of the methods with the greatest gain.

    A task's gain is the sum over its pairs of methods; a tree's edge is shown by the task of the greatest gain that has
    both of its methods, ties drawn at random. What is taken is not taken again.

    Args:
        tasks: (n, k) numbers of methods, padded by -1.
        gain: (M, M) of `gain_of_pairs`.
        count: how many to rank.
    Returns:
        (min(n, count),) indices.
    Source: Mikhailiuk et al., Active Sampling for Pairwise Comparisons via Approximate Message Passing and Information
        Gain Maximization, 2020 (the tree: Li et al., Hybrid-MST, 2018).
    """
    from scipy.sparse.csgraph import minimum_spanning_tree

    holds = np.zeros((len(tasks), len(gain)), dtype=bool)
    for column in tasks.T:
        holds[np.flatnonzero(column >= 0), column[column >= 0]] = True
    worth = 0.5 * ((holds @ np.where(np.eye(len(gain)) > 0, 0.0, gain)) * holds).sum(axis=1)
    drawn, left = rng.random(len(tasks)), np.ones(len(tasks), dtype=bool)
    ranked: list[int] = []
    while left.any() and len(ranked) < count:
        open_pairs = (holds[left].T.astype(np.int64) @ holds[left]) > 0
        # The tree of least cost; a cost of 0 would be no edge.
        cost = np.where(np.triu(open_pairs, 1), gain.max() + 1 - gain, 0)
        tree = minimum_spanning_tree(cost).tocoo()
        if not len(tree.data):
            break
        for first, second in sorted(zip(tree.row, tree.col, strict=True), key=lambda edge: -gain[edge]):
            fits = np.flatnonzero(left & holds[:, first] & holds[:, second])
            if len(fits) and len(ranked) < count:
                best = int(fits[np.lexsort((drawn[fits], -worth[fits]))[0]])
                left[best] = False
                ranked.append(best)
    return np.array(ranked, dtype=np.intp)
