"""Methods ranked from people's judgments: Bradley-Terry scores with intervals, head-to-head wins.

All but `load_judgments` is arrays in, tables out. A *vote* is a judgment that counts here: live, of an ordinary pair,
no repeat, no skip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from annotate.people import get_person
from db.models import Candidate, Judgment, Method, Pair, Person, Source, Split

PRIOR_TIES = 0.5
"""Virtual ties of each method with an average one: what keeps the score of a method that won everything finite."""
MIN_SOURCES = 5
"""Sources below which a bootstrap over sources says nothing, so that no interval is given."""
JUDGMENT_COLUMNS = [
    "judgment_id",
    "pair",
    "source",
    "method_a",
    "method_b",
    "choice",
    "shown_left",
    "repeat_no",
    "gold_answer",
    "person",
    "simulated",
    "seconds",
    "created_at",
]
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
]

Floats = npt.NDArray[np.float64]


def load_judgments(
    session: Session, *, split: Split | None = None, people: Sequence[str] = (), include_simulated: bool = False
) -> pd.DataFrame:
    """Every live judgment, a row each in the order of their making: JUDGMENT_COLUMNS.

    Args:
        split: only pairs of this split; None takes all.
        people: names of those whose judgments are taken; empty takes all.
        include_simulated: take simulated annotators too; their names gain ' (simulated)'.
    Raises:
        UserError: there is no person of such a name.
    """
    first, second = aliased(Candidate), aliased(Candidate)
    method_a, method_b = aliased(Method), aliased(Method)
    statement = (
        select(
            Judgment.id,
            Pair.key,
            Source.key,
            method_a.name,
            method_b.name,
            Judgment.choice,
            Judgment.shown_left,
            Judgment.repeat_no,
            Pair.gold_answer,
            Person.name,
            Person.simulated,
            Judgment.seconds,
            Judgment.created_at,
        )
        .join(Pair, Pair.id == Judgment.pair_id)
        .join(Source, Source.id == Pair.source_id)
        .join(first, first.id == Pair.a_id)
        .join(second, second.id == Pair.b_id)
        .join(method_a, method_a.id == first.method_id)
        .join(method_b, method_b.id == second.method_id)
        .join(Person, Person.id == Judgment.person_id)
        .where(Judgment.superseded_at.is_(None))
        .order_by(Judgment.id)
    )
    if split is not None:
        statement = statement.where(Source.split == split)
    if people:
        statement = statement.where(Person.id.in_([get_person(session, name).id for name in people]))
    if not include_simulated:
        statement = statement.where(Person.simulated.is_(False))
    table = pd.DataFrame([tuple(row) for row in session.execute(statement)], columns=JUDGMENT_COLUMNS)
    for column in ("choice", "shown_left"):
        table[column] = table[column].map(str)
    table["simulated"] = table["simulated"].astype(bool)
    table.loc[table["simulated"], "person"] += " (simulated)"
    return table


def select_votes(judgments: pd.DataFrame) -> pd.DataFrame:
    """The judgments that count for rankings and agreement: no repeat, no gold pair, no skip."""
    counts = (judgments["repeat_no"] == 0) & judgments["gold_answer"].isna() & (judgments["choice"] != "skip")
    return judgments[counts].reset_index(drop=True)


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


def _components(tally: _Tally) -> npt.NDArray[np.int64]:
    """(n_methods,) numbers from 1, the largest group first: methods of one number met, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(tally.methods)
    met = coo_array((np.ones(len(tally.xs)), (tally.xs, tally.ys)), shape=(n, n))
    labels = connected_components(met, directed=False)[1]
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
    mean zero and ranks hold within a component. Pairs of one method's own seeds are left out.

    Args:
        votes: as `select_votes` gives them.
        n_resamples: bootstrap resamples of the sources for the 95 % percentile intervals.
        prior_ties: each method's virtual ties with an average method, above 0; without them the score of a method
            that won or lost everything would be infinite.
    Returns:
        method, score, low, high, rank, n_judgments, n_sources, wins, ties, losses, win_rate, component; low and high
        are NaN with votes on fewer than MIN_SOURCES sources.
    Source: Bradley & Terry 1952, fitted by evalica (Newman's iteration, JMLR 24, 2023).
    """
    votes = votes[votes["method_a"] != votes["method_b"]]
    if votes.empty:
        return pd.DataFrame(columns=RANKING_COLUMNS)
    tally = _tally(votes)
    components = _components(tally)
    scores = _center(_fit_scores(tally, tally.by_source.sum(axis=0), prior_ties), components)
    table = _count_outcomes(votes).reindex(tally.methods)
    table["score"], table["component"] = scores, components
    table["low"], table["high"] = np.nan, np.nan
    enough = table["n_sources"].to_numpy() >= MIN_SOURCES
    if enough.any() and n_resamples > 0:
        drawn = _bootstrap_scores(tally, components, n_resamples, seed, prior_ties)
        table.loc[enough, ["low", "high"]] = np.nanpercentile(drawn[:, enough], [2.5, 97.5], axis=0).T
    table["rank"] = table.groupby("component")["score"].rank(ascending=False, method="min").astype(int)
    table = table.rename_axis("method").reset_index().sort_values(["component", "rank", "method"])
    return table[RANKING_COLUMNS].reset_index(drop=True)


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


def compute_win_matrix(votes: pd.DataFrame, methods: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Head to head: (share of the judgments that the row's method won over the column's, number of judgments).

    A tie is half a win for each; the share is NaN where the two never met, and on the diagonal.
    """
    votes = votes[votes["method_a"] != votes["method_b"]]
    worth = votes["choice"].map({"a": 1.0, "tie": 0.5, "b": 0.0})
    both = pd.concat(
        [
            pd.DataFrame({"row": votes["method_a"], "column": votes["method_b"], "won": worth}),
            pd.DataFrame({"row": votes["method_b"], "column": votes["method_a"], "won": 1.0 - worth}),
        ]
    ).groupby(["row", "column"])["won"]
    names = list(methods)
    shares = both.mean().unstack().reindex(index=names, columns=names)
    counts = both.size().unstack().reindex(index=names, columns=names).fillna(0).astype(int)
    return shares.rename_axis(index="method", columns=None), counts.rename_axis(index="method", columns=None)
