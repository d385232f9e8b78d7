"""Rank methods by scorers and by people: both by Bradley-Terry of answers to the same pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from dataset.labelled import LabelledPair
from metrics.plackett_luce import PRIOR_TIES
from metrics.votes import MIN_SOURCES, rank_methods
from reward.evaluate.answers import Answers
from reward.evaluate.compare import RESAMPLES, Labels

Array = npt.NDArray[Any]

MIN_RANKED = 3
"""Methods below which a rank correlation says nothing."""
DIGITS = 6
"""To which scores are told apart: equal counts give equal scores up to rounding."""
MAX_ITERATIONS, LONGEST_STEP, SHORTEST_STEP = 200, 2.0, 1e-9
CORRELATION_COLUMNS = ["scorer", "methods"] + [
    f"{name}{end}" for name in ("spearman", "kendall") for end in ("", "_low", "_high")
]


def join_votes(labels: Labels, votes: pd.DataFrame) -> pd.DataFrame:
    """People's votes; a label without votes, such as an imported one, is one vote.

    Args:
        votes: of these pairs, as `reward.evaluate.people.select_votes` gives them.
    """
    voted = set(votes["pair"])
    others = [row for row in labels.pairs if row.pair not in voted]
    rest = make_votes(others, np.array([row.p_a - 0.5 for row in others]))
    return pd.concat([votes, rest], ignore_index=True) if len(rest) else votes


def make_votes(pairs: Sequence[LabelledPair], margin: Array) -> pd.DataFrame:
    """One vote per pair for the side that a margin prefers; a tie where it is 0, none where it is NaN."""
    choice = np.where(margin == 0, "tie", np.where(margin > 0, "a", "b"))
    rows = [
        (row.pair, row.source, row.method_a, row.method_b, answer)
        for row, answer, known in zip(pairs, choice, np.isfinite(margin), strict=True)
        if known
    ]
    return pd.DataFrame(rows, columns=["pair", "source", "method_a", "method_b", "choice"])


def compare_rankings(
    scorers: Sequence[Answers], labels: Labels, votes: pd.DataFrame, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rank the methods by scorers and by people, by Bradley-Terry of their answers to the same pairs.

    Only methods that people compared with each other, directly or through others: their largest group.

    Args:
        votes: people's, of these pairs, as `reward.evaluate.people.select_votes` gives them.
    Returns:
        (methods: method, people, people_low, people_high, then a column per scorer with its scores;
        a row per scorer: CORRELATION_COLUMNS; correlations are NaN below MIN_RANKED methods, their 95 % intervals, from
        resampling sources for both rankings at once, below MIN_SOURCES sources too).
    """
    joined = join_votes(labels, votes)
    people = rank_methods(joined, n_resamples=RESAMPLES, seed=seed)
    table = people[people["component"] == 1].set_index("method")[["score", "low", "high"]]
    table.columns = pd.Index(["people", "people_low", "people_high"])
    methods, sources = list(table.index), sorted(set(labels.sources))
    drawn = np.random.default_rng(seed).multinomial(len(sources), np.full(len(sources), 1 / len(sources)), RESAMPLES)
    wins_of_people = count_wins(joined, sources, methods)
    scores_of_people = fit_scores(resample(wins_of_people, drawn))
    rows = []
    for answers in scorers:
        own = make_votes(labels.pairs, answers.margin)
        ranking = rank_methods(own, n_resamples=0)
        ranking = ranking[ranking["component"] == 1].set_index("method")
        table[answers.name] = ranking["score"].reindex(methods)
        point = correlate_ranks(table["people"].to_numpy(dtype=float), table[answers.name].to_numpy(dtype=float))
        wins = count_wins(own, sources, methods)
        ends = np.full((2, 2), np.nan)
        answered = (wins.any(axis=(1, 2)) & wins_of_people.any(axis=(1, 2))).sum()
        if np.isfinite(point).any() and answered >= MIN_SOURCES:
            scores = np.where(table[answers.name].notna(), fit_scores(resample(wins, drawn)), np.nan)
            ends = np.nanpercentile(correlate_ranks(scores_of_people, scores), [2.5, 97.5], axis=-1).T
        both = int((table["people"].notna() & table[answers.name].notna()).sum())
        rows.append((answers.name, both, point[0], *ends[0], point[1], *ends[1]))
    return table.reset_index(), pd.DataFrame(rows, columns=CORRELATION_COLUMNS)


def count_wins(votes: pd.DataFrame, sources: Sequence[str], methods: Sequence[str]) -> Array:
    """(sources, methods, methods) wins of a method over another on a source; a tie is half a win for each.

    Votes on other sources or methods, and between images of one method, are left out.
    """
    wins = np.zeros((len(sources), len(methods), len(methods)))
    at = pd.Index(sources).get_indexer(pd.Index(votes["source"]))
    a, b = (pd.Index(methods).get_indexer(pd.Index(votes[f"method_{side}"])) for side in "ab")
    known = (at >= 0) & (a >= 0) & (b >= 0) & (a != b)
    share = votes["choice"].map({"a": 1.0, "tie": 0.5, "b": 0.0}).to_numpy(dtype=float)[known]
    at, a, b = at[known], a[known], b[known]
    np.add.at(wins, (at, a, b), share)
    np.add.at(wins, (at, b, a), 1 - share)
    return wins


def resample(wins: Array, drawn: Array) -> Array:
    """(R, methods, methods) wins where each source counts as often as `drawn`, (R, sources), says."""
    flat = drawn @ wins.reshape(len(wins), -1)
    return np.asarray(flat.reshape(-1, *wins.shape[1:]))


def fit_scores(wins: Array) -> Array:
    """(R, M) Bradley-Terry log strengths of R tables of wins, (R, M, M); NaN for a method without a vote.

    The same as `metrics.votes.rank_methods` up to a number that all methods of a table share, all tables at once: the
    maximum of the likelihood with PRIOR_TIES ties of each method against one of strength 0, by Newton's iteration.
    """
    met = wins + wins.swapaxes(1, 2)
    scores = np.zeros(wins.shape[:2])
    own = np.arange(wins.shape[1])
    for _ in range(MAX_ITERATIONS):
        p = expit(scores[:, :, None] - scores[:, None, :])
        against_average = expit(scores)
        gradient = (wins - met * p).sum(axis=2) + PRIOR_TIES * (0.5 - against_average)
        curvature = met * p * (1 - p)
        hessian = -curvature
        hessian[:, own, own] += curvature.sum(axis=2) + PRIOR_TIES * against_average * (1 - against_average)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        scores += step.clip(-LONGEST_STEP, LONGEST_STEP)
        if np.abs(step).max(initial=0) < SHORTEST_STEP:
            break
    return np.where(met.any(axis=2), scores, np.nan)


def correlate_ranks(x: Array, y: Array) -> Array:
    """(2, …) Spearman's and Kendall's (tau-b) correlations of two (…, M); entries that are NaN in one are left out.

    Both follow from the signs of all differences, whose sums are the ranks. NaN below MIN_RANKED entries, and where
    all of one side are equal.
    """
    known = np.isfinite(x) & np.isfinite(y)
    both = known[..., :, None] & known[..., None, :]
    signs = []
    for values in (x, y):
        rounded = np.round(np.where(known, values, 0), DIGITS)
        signs.append(np.sign(rounded[..., :, None] - rounded[..., None, :]) * both)
    found = []
    for first, second in ([sign.sum(axis=-1) for sign in signs], [sign.reshape(*x.shape[:-1], -1) for sign in signs]):
        length = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
        enough = (known.sum(axis=-1) >= MIN_RANKED) & (length > 0)
        found.append(np.where(enough, (first * second).sum(axis=-1) / np.where(enough, length, 1), np.nan))
    return np.stack(found)
