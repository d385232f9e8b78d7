"""Rank methods by people's votes (Bradley-Terry, with intervals), and compute how far people agree.

Tables in, tables out, for annotate, which has votes from the database, and reward, which has them from a dataset
folder. A *vote* is one answer that counts: pair, source, method_a, method_b, choice (a, b or tie), person, simulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from metrics.accuracy import SAME, exact_interval

PRIOR_TIES = 0.5
"""Virtual ties of each method with an average one: what keeps the score of a method that won everything finite."""
MIN_SOURCES = 5
"""Sources below which a bootstrap over sources says nothing, so that no interval is given."""
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
]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Tally:
    """Votes added up by source and by kind (method x, method y, who won), so that resampling sources is a product."""

    methods: list[str]
    xs: list[int]
    ys: list[int]
    outcomes: list[str]
    """'x', 'y' or 'tie', one per kind."""
    by_source: Any
    """(n_sources, n_kinds) sparse counts."""


def count_by_source(keys: pd.DataFrame, sources: pd.Series[str]) -> tuple[pd.DataFrame, Any]:
    """(distinct rows of `keys`, sparse (n_sources, n_distinct) counts of them)."""
    from scipy.sparse import coo_array

    kind = keys.groupby(list(keys.columns), sort=True).ngroup().to_numpy()
    distinct = keys.assign(kind=kind).drop_duplicates("kind").sort_values("kind").drop(columns="kind")
    source, names = pd.factorize(sources, sort=True)
    counts = coo_array((np.ones(len(keys)), (source, kind)), shape=(len(names), len(distinct)))
    return distinct.reset_index(drop=True), counts.tocsr()


def _tally(votes: pd.DataFrame) -> _Tally:
    methods = sorted(set(votes["method_a"]) | set(votes["method_b"]))
    number = {name: place for place, name in enumerate(methods)}
    a, b = votes["method_a"].map(number).to_numpy(), votes["method_b"].map(number).to_numpy()
    a_is_x = a < b
    won_by_x = np.where(a_is_x, votes["choice"] == "a", votes["choice"] == "b")
    outcome = np.where(votes["choice"] == "tie", "tie", np.where(won_by_x, "x", "y"))
    keys = pd.DataFrame({"x": np.minimum(a, b), "y": np.maximum(a, b), "outcome": outcome})
    kinds, by_source = count_by_source(keys, votes["source"])
    return _Tally(methods, kinds["x"].tolist(), kinds["y"].tolist(), kinds["outcome"].tolist(), by_source)


def resample_sources(by_source: Any, n_resamples: int, seed: int) -> Iterator[Floats]:
    """Counts per kind, (n_kinds,), of each bootstrap resample: as many sources again, drawn with replacement."""
    rng = np.random.default_rng(seed)
    n_sources = by_source.shape[0]
    for _ in range(n_resamples):
        drawn = np.bincount(rng.integers(0, n_sources, n_sources), minlength=n_sources)
        yield by_source.T @ drawn


def _fit_scores(tally: _Tally, weights: Floats, prior_ties: float) -> Floats:
    """(n_methods,) Bradley-Terry log strengths, of no particular mean."""
    import evalica

    winner = {"x": evalica.Winner.X, "y": evalica.Winner.Y, "tie": evalica.Winner.Draw}
    n = len(tally.methods)  # also the number of the average method that the prior's ties are with
    xs = [*tally.xs, *range(n)]
    ys = [*tally.ys, *[n] * n]
    winners = [*(winner[outcome] for outcome in tally.outcomes), *[evalica.Winner.Draw] * n]
    values = [*weights.tolist(), *[prior_ties] * n]
    # The library's own limit of 100 iterations stops short on sparse tables.
    result = evalica.bradley_terry(
        xs, ys, winners, index=pd.Index(range(n + 1)), weights=values, tie_weight=0.5, tolerance=1e-8, limit=10_000
    )
    scores: Floats = np.log(result.scores.sort_index().to_numpy()[:n])
    return scores


def _list_wins(tally: _Tally) -> npt.NDArray[np.int64]:
    """(n, 2) who won over whom, a tie both ways."""
    kinds = list(zip(tally.xs, tally.ys, tally.outcomes, strict=True))
    wins = [(x, y) for x, y, outcome in kinds if outcome != "y"] + [(y, x) for x, y, outcome in kinds if outcome != "x"]
    return np.array(wins, dtype=np.int64).reshape(-1, 2)


def _components(tally: _Tally, *, strong: bool) -> npt.NDArray[np.int64]:
    """(n_methods,) numbers from 1, the largest group first: methods of one number met, directly or through others.

    Args:
        strong: they have also won or tied against each other, directly or through others.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, wins = len(tally.methods), _list_wins(tally)
    won = coo_array((np.ones(len(wins)), (wins[:, 0], wins[:, 1])), shape=(n, n))
    labels = connected_components(won, directed=strong, connection="strong" if strong else "weak")[1]
    by_size = sorted(set(labels), key=lambda label: (-(labels == label).sum(), label))
    return np.array([by_size.index(label) + 1 for label in labels])


def _center(scores: Floats, components: npt.NDArray[np.int64]) -> Floats:
    centered = scores.copy()
    for component in set(components.tolist()):
        members = components == component
        centered[members] -= scores[members].mean()
    return centered


def rank_methods(
    votes: pd.DataFrame, *, n_resamples: int = 1000, seed: int = 0, prior_ties: float = PRIOR_TIES
) -> pd.DataFrame:
    """Methods by Bradley-Terry score, best first; a tie is half a win for each.

    A score is a log strength with mean zero: a method that lies d above another wins against it with probability
    1 / (1 + exp(-d)), ties counted as one half. So 0 is a coin, 1.1 is 3 to 1, 2.2 is 9 to 1.

    Methods that never met, not even through others, cannot be compared: they get different `component` numbers, and
    mean zero and ranks hold within a component. Between methods of two `strong_component` numbers every judgment went
    one way, directly and through others: their likelihood has no finite maximum, and how far they lie apart is the
    prior's doing alone (`explain_connection` says so in words). Pairs of one method's own seeds are left out.

    Args:
        votes: as `select_votes` gives them.
        n_resamples: bootstrap resamples of the sources for the 95 % percentile intervals.
        prior_ties: each method's virtual ties with an average method, above 0; without them the score of a method
            that won or lost everything would be infinite.
    Returns:
        method, score, low, high, rank, n_judgments, n_sources, wins, ties, losses, win_rate, component,
        strong_component; low and high are NaN with votes on fewer than MIN_SOURCES sources, and where every resample
        gives the same score.
    Source: Bradley & Terry 1952, fitted by evalica (Newman's iteration, JMLR 24, 2023).
    """
    votes = votes[votes["method_a"] != votes["method_b"]]
    if votes.empty:
        return pd.DataFrame(columns=RANKING_COLUMNS)
    tally = _tally(votes)
    components = _components(tally, strong=False)
    scores = _center(_fit_scores(tally, tally.by_source.sum(axis=0), prior_ties), components)
    table = _count_outcomes(votes).reindex(tally.methods)
    table["score"], table["component"] = scores, components
    table["strong_component"] = _components(tally, strong=True)
    table["low"], table["high"] = np.nan, np.nan
    enough = table["n_sources"].to_numpy() >= MIN_SOURCES
    if enough.any() and n_resamples > 0:
        drawn = _bootstrap_scores(tally, components, n_resamples, seed, prior_ties)
        ends = np.nanpercentile(drawn[:, enough], [2.5, 97.5], axis=0)
        # Where every source says the same, a width of zero would say that the score is known exactly.
        table.loc[enough, ["low", "high"]] = np.where(ends[1] - ends[0] > SAME_SCORE, ends, np.nan).T
    table["rank"] = table.groupby("component")["score"].rank(ascending=False, method="min").astype(int)
    table = table.rename_axis("method").reset_index().sort_values(["component", "rank", "method"])
    return table[RANKING_COLUMNS].reset_index(drop=True)


def explain_connection(votes: pd.DataFrame) -> list[str]:
    """List what the graph of who met and who won leaves unknown of the scores, a sentence each.

    Source: Ford, Solution of a Ranking Problem from Binary Comparisons, 1957: the likelihood has a finite maximum only
    where every split of the methods into two sets was won over by each of them at least once.
    """
    votes = votes[votes["method_a"] != votes["method_b"]]
    if votes.empty:
        return []
    tally = _tally(votes)
    components, strong, wins = _components(tally, strong=False), _components(tally, strong=True), _list_wins(tally)
    notes, n_groups = [], int(components.max())
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


def _bootstrap_scores(
    tally: _Tally, components: npt.NDArray[np.int64], n_resamples: int, seed: int, prior_ties: float
) -> Floats:
    """(n_resamples, n_methods) scores of resampled sources; NaN where a resample lacks the method."""
    xs, ys = np.array(tally.xs), np.array(tally.ys)
    drawn = np.full((n_resamples, len(tally.methods)), np.nan)
    for place, weights in enumerate(resample_sources(tally.by_source, n_resamples, seed)):
        present = np.union1d(xs[weights > 0], ys[weights > 0])
        drawn[place, present] = _center(_fit_scores(tally, weights, prior_ties), components)[present]
    return drawn


def _count_outcomes(votes: pd.DataFrame) -> pd.DataFrame:
    """By method: n_judgments, n_sources, wins, ties, losses, win_rate (ties one half)."""
    sides = [
        pd.DataFrame(
            {
                "method": votes[f"method_{own}"],
                "source": votes["source"],
                "wins": votes["choice"] == own,
                "ties": votes["choice"] == "tie",
                "losses": votes["choice"] == other,
            }
        )
        for own, other in (("a", "b"), ("b", "a"))
    ]
    grouped = pd.concat(sides).groupby("method")
    table = grouped[["wins", "ties", "losses"]].sum().astype(int)
    table["n_sources"] = grouped["source"].nunique()
    table["n_judgments"] = grouped.size()
    table["win_rate"] = (table["wins"] + 0.5 * table["ties"]) / table["n_judgments"]
    return table


def compute_ceiling(votes: pd.DataFrame, n_resamples: int, seed: int) -> tuple[float, float, float, int]:
    """The human ceiling, (value, low, high, n): how often one person's answer is that of most others, of n answers.

    Simulated annotators never count; the 95 % interval resamples sources. NaN where there is too little.
    """
    compared = compare_with_others(votes[~votes["simulated"]])
    by_source = compared.groupby("source")["agrees"].agg(["sum", "size"]).to_numpy(dtype=float)
    nan = float("nan")
    if len(compared) < MIN_SHARED_PAIRS:
        return nan, nan, nan, len(compared)
    value = float(compared["agrees"].mean())
    if len(by_source) < MIN_SOURCES or n_resamples < 1:
        return value, nan, nan, len(compared)
    rng = np.random.default_rng(seed)
    sums = [by_source[rng.integers(0, len(by_source), len(by_source))].sum(axis=0) for _ in range(n_resamples)]
    low, high = np.percentile([agree / n for agree, n in sums], [2.5, 97.5])
    if high - low < SAME:
        low, high = exact_interval(value, len(by_source))
    return value, float(low), float(high), len(compared)


def compare_with_others(votes: pd.DataFrame) -> pd.DataFrame:
    """Each vote against the most frequent answer of the others on that pair: person, source, agrees.

    Votes on pairs that nobody else judged, or where the others have no single most frequent answer, are left out.
    """
    if votes.empty:
        return pd.DataFrame({"person": [], "source": [], "agrees": pd.Series(dtype=bool)})
    counts = pd.crosstab(votes["pair"], votes["choice"]).reindex(columns=CHOICES, fill_value=0)
    own = votes["choice"].map({choice: place for place, choice in enumerate(CHOICES)}).to_numpy()
    others = counts.loc[votes["pair"]].to_numpy().copy()
    others[np.arange(len(votes)), own] -= 1
    most = others.max(axis=1)
    clear = (most > 0) & ((others == most[:, None]).sum(axis=1) == 1)
    table = pd.DataFrame({"person": votes["person"], "source": votes["source"], "agrees": others.argmax(axis=1) == own})
    compared: pd.DataFrame = table[clear].reset_index(drop=True)
    return compared
