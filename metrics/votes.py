"""Rank methods by people's answers (Plackett-Luce, with intervals), and compute how far people agree.

Tables in, tables out, for annotate, which has answers from the database, and reward, which has votes from a dataset
folder. See `metrics.answers` for both kinds of table; every function here takes either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from metrics.accuracy import SAME, exact_interval
from metrics.answers import list_comparisons, read_answers
from metrics.plackett_luce import PRIOR_TIES, Floats, Tally, fit, tally_answers
from metrics.two_way import compute_spread, number_clusters

JOD = float(np.log(3))
"""Log odds of one just-objectionable difference: of two methods so far apart people prefer the better in 75 %."""
MIN_SOURCES = 5
"""Photos below which leaving one out says nothing of others, so that no interval is given."""
MIN_PEOPLE = 5
"""People below which an interval is given, but is not one for people in general."""
MIN_SHARED_PAIRS = 10
"""Pairs judged by two or more people, or answers with a majority of others, below which agreement is not given."""
SAME_SCORE = 1e-6
"""Difference of scores up to which it is rounding: they are fitted to some eight digits."""
CHOICES = ["a", "tie", "b"]
RANKING_COLUMNS = [
    "method",
    "score",
    "low",
    "high",
    "rank",
    "n_judgments",
    "n_sources",
    "wins",
    "ties",
    "losses",
    "win_rate",
    "component",
    "strong_component",
    "score_jod",
    "low_jod",
    "high_jod",
    "rank_low",
    "rank_high",
    "n_groups",
]


def count_by_source(keys: pd.DataFrame, sources: pd.Series[str]) -> tuple[pd.DataFrame, Any]:
    """(distinct rows of `keys`, sparse (n_sources, n_distinct) counts of them)."""
    from scipy.sparse import coo_array

    kind = keys.groupby(list(keys.columns), sort=True).ngroup().to_numpy()
    distinct = keys.assign(kind=kind).drop_duplicates("kind").sort_values("kind").drop(columns="kind")
    source, names = pd.factorize(sources, sort=True)
    counts = coo_array((np.ones(len(keys)), (source, kind)), shape=(len(names), len(distinct)))
    return distinct.reset_index(drop=True), counts.tocsr()


def resample_sources(by_source: Any, n_resamples: int, seed: int) -> Iterator[Floats]:
    """Counts per kind, (n_kinds,), of each bootstrap resample: as many sources again, drawn with replacement."""
    rng = np.random.default_rng(seed)
    n_sources = by_source.shape[0]
    for _ in range(n_resamples):
        drawn = np.bincount(rng.integers(0, n_sources, n_sources), minlength=n_sources)
        yield by_source.T @ drawn


def find_components(tally: Tally, *, strong: bool) -> npt.NDArray[np.int64]:
    """(n_methods,) numbers from 1, the largest group first: methods of one number met, directly or through others.

    Args:
        strong: they have also won or tied against each other, directly or through others.
    """
    from scipy.sparse.csgraph import connected_components

    if not tally.methods:
        return np.zeros(0, dtype=np.int64)
    labels = connected_components(tally.beats, directed=strong, connection="strong" if strong else "weak")[1]
    by_size = sorted(set(labels), key=lambda label: (-(labels == label).sum(), label))
    return np.array([by_size.index(label) + 1 for label in labels])


def center(scores: Floats, components: npt.NDArray[np.int64]) -> Floats:
    """(n_methods,) scores with mean zero in each component."""
    centered = scores.copy()
    for component in set(components.tolist()):
        members = components == component
        centered[members] -= scores[members].mean()
    return centered


def rank_methods(
    answers: pd.DataFrame, *, n_resamples: int = 1000, seed: int = 0, prior_ties: float = PRIOR_TIES
) -> pd.DataFrame:
    """Methods by Plackett-Luce score, best first; of pairs that is Bradley-Terry, a tie half a win for each.

    A score is a log strength with mean zero: a method that lies d above another wins against it with probability
    1 / (1 + exp(-d)), ties counted as one half. So 0 is a coin, 1.1 is 3 to 1, 2.2 is 9 to 1. In JOD, the unit of
    picture quality, 1 is 3 to 1 (75 % prefer it): `score_jod` is the score by log 3.

    Methods that never met, not even through others, cannot be compared: they get different `component` numbers, and
    mean zero and ranks hold within a component. Between methods of two `strong_component` numbers every answer went
    one way, directly and through others: their likelihood has no finite maximum, and how far they lie apart is the
    prior's doing alone (`explain_connection` says so in words). Pairs of one method's own seeds are left out.

    Args:
        answers: or votes, see `metrics.answers`.
        n_resamples: draws of scores behind the intervals of ranks; 0 for no intervals at all.
        prior_ties: each method's virtual ties with an average method, above 0; without them the score of a method
            that won or lost everything would be infinite.
    Returns:
        RANKING_COLUMNS. low and high are the 95 % interval over other photos (by the person in them) and other people,
        see `metrics.two_way`: of the score against others of the same strong component. They are NaN for a method
        judged in fewer than MIN_SOURCES photos, one alone in its strong component, and where all photos say the same.
        wins, ties and losses count comparisons, each two candidates that an answer tells of; n_judgments answers;
        n_groups the people in the photos, where they are known.
    Source: see `metrics.plackett_luce`.
    """
    answers = read_answers(answers)
    tally = tally_answers(answers)
    if not tally.methods:
        return pd.DataFrame(columns=RANKING_COLUMNS)
    components, strong = (find_components(tally, strong=strong) for strong in (False, True))
    found = fit(tally, prior_ties=prior_ties)
    table = _count_outcomes(answers).reindex(tally.methods)
    table["score"], table["component"], table["strong_component"] = center(found.scores, components), components, strong
    table[["low", "high", "rank_low", "rank_high"]] = np.nan
    table["rank"] = _rank(table["score"].to_numpy(), components).astype(int)
    enough = table["n_groups"].to_numpy() >= MIN_SOURCES
    if enough.any() and n_resamples > 0:
        spread = compute_spread(tally, found, *number_clusters(answers), strong)
        known = enough & (2 * spread.half_width > SAME_SCORE)
        scores = table["score"].to_numpy()
        table["low"], table["high"] = (np.where(known, scores + end * spread.half_width, np.nan) for end in (-1.0, 1.0))
        ranks = _draw_ranks(scores, spread.covariance, spread.half_width, components, n_resamples, seed)
        table["rank_low"], table["rank_high"] = (np.where(known, end, np.nan) for end in ranks)
    for name in ("score", "low", "high"):
        table[f"{name}_jod"] = table[name] / JOD
    table = table.rename_axis("method").reset_index().sort_values(["component", "rank", "method"])
    return table[RANKING_COLUMNS].reset_index(drop=True)


def _rank(scores: Floats, components: npt.NDArray[np.int64]) -> Floats:
    """(..., n_methods) ranks from 1 within each component; equal scores have the better one."""
    ahead = (scores[..., None, :] > scores[..., :, None]) & (components[None, :] == components[:, None])
    ranks: Floats = 1.0 + ahead.sum(axis=-1)
    return ranks


def _draw_ranks(
    scores: Floats,
    covariance: Floats,
    half_width: Floats,
    components: npt.NDArray[np.int64],
    n_resamples: int,
    seed: int,
) -> Floats:
    """(2, n_methods) ends of the 95 % intervals of ranks, from normal draws as wide as the scores' intervals."""
    deviation = np.sqrt(np.diag(covariance))
    wider = np.where(deviation > 0, half_width / 1.959964 / np.where(deviation > 0, deviation, 1.0), 0.0)
    values, vectors = np.linalg.eigh(covariance * np.outer(wider, wider))
    drawn = np.random.default_rng(seed).normal(size=(n_resamples, len(scores)))
    ranks = _rank(scores + (drawn * np.sqrt(values.clip(min=0))) @ vectors.T, components)
    ends: Floats = np.percentile(ranks, [2.5, 97.5], axis=0, method="nearest")
    return ends


def explain_intervals(answers: pd.DataFrame) -> str:
    """What the ranking's intervals are over, and what they do not cover, in a sentence or two."""
    photos, people = number_clusters(read_answers(answers))
    n_photos, n_people = len(set(photos.tolist())), 0 if people is None else len(set(people.tolist()))
    shared = "group" in answers and n_photos < answers["source"].nunique()
    told = f"{n_photos:,} {'people in the photos' if shared else 'photos'}"
    if n_photos < MIN_SOURCES:
        return f"No intervals: {told} say nothing of other photos; {MIN_SOURCES} do."
    if n_people < 2:
        who = "one person answered" if n_people else "it is not known who answered"
        return f"Intervals (95 %) are over {told}. They do not cover what other people would say: {who}."
    said = f"Intervals (95 %) are over {told} and the {n_people:,} people who answered"
    if n_people < MIN_PEOPLE:
        said += f"; {n_people} people say little of how far others differ, so that they may be too narrow for people "
        said += f"in general, which takes {MIN_PEOPLE} or more"
    return f"{said}."


def explain_connection(answers: pd.DataFrame) -> list[str]:
    """List what the graph of who met and who won leaves unknown of the scores, a sentence each.

    Source: Ford, Solution of a Ranking Problem from Binary Comparisons, 1957: the likelihood has a finite maximum only
    where every split of the methods into two sets was won over by each of them at least once. The same of
    Plackett-Luce: Hunter, MM Algorithms for Generalized Bradley-Terry Models, 2004.
    """
    tally = tally_answers(read_answers(answers))
    components, strong = (find_components(tally, strong=strong) for strong in (False, True))
    wins = np.column_stack(tally.beats.nonzero())
    notes, n_groups = [], int(components.max(initial=0))
    if n_groups > 1:
        notes.append(
            f"The methods fall into {n_groups} groups that never met, not even through others: "
            "scores and ranks hold within a group only."
        )
    between = wins[strong[wins[:, 0]] != strong[wins[:, 1]]]
    won, lost = set(strong[between[:, 0]].tolist()), set(strong[between[:, 1]].tolist())
    for component in range(1, n_groups + 1):
        parts = list(dict.fromkeys(strong[components == component].tolist()))
        if len(parts) == 1:
            continue
        parts.sort(key=lambda part: (part in lost, part not in won))  # who only won, who did both, who only lost
        told = []
        for part in parts:
            names = [tally.methods[place] for place in np.flatnonzero(strong == part)]
            words = "won every judgment" if part not in lost else "lost every judgment"
            words = "won every judgment against some and lost every one to others" if part in won & lost else words
            told.append(f"{', '.join(names)} {words}" + (" but those among themselves" if len(names) > 1 else ""))
        where = f" in group {component}" if n_groups > 1 else ""
        notes.append(
            f"The comparisons are not strongly connected{where}, so that no finite scores are the likeliest: "
            f"{'; '.join(told)}. How far these lie apart is not known, only which way: the {PRIOR_TIES:g} virtual ties "
            "of each method set it."
        )
    return notes


def _count_outcomes(answers: pd.DataFrame) -> pd.DataFrame:
    """By method: wins, ties, losses (comparisons), n_judgments (answers), n_sources, n_groups, win_rate (ties half)."""
    compared = list_comparisons(answers)
    compared = compared[compared["method_a"] != compared["method_b"]]
    group = compared["group"].fillna(compared["source"]) if "group" in compared else compared["source"]
    sides = [
        pd.DataFrame(
            {
                "method": compared[f"method_{own}"],
                "answer": compared["answer"],
                "source": compared["source"],
                "group": group,
                "wins": compared["choice"] == own,
                "ties": compared["choice"] == "tie",
                "losses": compared["choice"] == other,
            }
        )
        for own, other in (("a", "b"), ("b", "a"))
    ]
    grouped = pd.concat(sides).groupby("method")
    table = grouped[["wins", "ties", "losses"]].sum().astype(int)
    for name, column in (("n_sources", "source"), ("n_groups", "group"), ("n_judgments", "answer")):
        table[name] = grouped[column].nunique()
    table["win_rate"] = (table["wins"] + 0.5 * table["ties"]) / table[["wins", "ties", "losses"]].sum(axis=1)
    return table


def compute_ceiling(votes: pd.DataFrame, n_resamples: int, seed: int) -> tuple[float, float, float, int]:
    """The human ceiling, (value, low, high, n): how often one person's answer is that of most others, of n answers.

    Simulated annotators never count; the 95 % interval resamples sources. NaN where there is too little. Of an answer
    about more than two it is the share of its comparisons, so that each answer counts once.
    """
    compared = compare_with_others(votes[~votes["simulated"]])
    compared = compared.assign(agrees=compared["agrees"] * compared["share"])
    by_source = compared.groupby("source")[["agrees", "share"]].sum().to_numpy(dtype=float)
    nan, n = float("nan"), round(float(compared["share"].sum()))
    if n < MIN_SHARED_PAIRS:
        return nan, nan, nan, n
    value = float(compared["agrees"].sum() / compared["share"].sum())
    if len(by_source) < MIN_SOURCES or n_resamples < 1:
        return value, nan, nan, n
    rng = np.random.default_rng(seed)
    sums = [by_source[rng.integers(0, len(by_source), len(by_source))].sum(axis=0) for _ in range(n_resamples)]
    low, high = np.percentile([agree / weight for agree, weight in sums], [2.5, 97.5])
    if high - low < SAME:
        low, high = exact_interval(value, len(by_source))
    return value, float(low), float(high), n


def compare_with_others(votes: pd.DataFrame) -> pd.DataFrame:
    """Each comparison of an answer against the most frequent of the others: person, source, agrees, share.

    Comparisons that nobody else made, or where the others have no single most frequent answer, are left out; `share` is
    one by the number of those of the same answer that are not.
    """
    if votes.empty:
        return pd.DataFrame({"person": [], "source": [], "agrees": pd.Series(dtype=bool), "share": []})
    votes = list_comparisons(read_answers(votes))
    counts = pd.crosstab(votes["pair"], votes["choice"]).reindex(columns=CHOICES, fill_value=0)
    own = votes["choice"].map({choice: place for place, choice in enumerate(CHOICES)}).to_numpy()
    others = counts.loc[votes["pair"]].to_numpy().copy()
    others[np.arange(len(votes)), own] -= 1
    most = others.max(axis=1)
    clear = (most > 0) & ((others == most[:, None]).sum(axis=1) == 1)
    table = votes.assign(agrees=others.argmax(axis=1) == own)[clear]
    table["share"] = 1 / table.groupby("answer")["answer"].transform("size")
    compared: pd.DataFrame = table[["person", "source", "agrees", "share"]].reset_index(drop=True)
    return compared
