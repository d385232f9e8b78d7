"""Read people's judgments as a table, and count head-to-head wins; `metrics.votes` ranks methods by them.

A *vote* is a judgment that counts there: live, of an ordinary pair, no repeat, no skip.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from annotate.judging.people import get_person
from db.models import Candidate, Judgment, Method, Pair, Person, Source, Split

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
    "question",
    "seconds",
    "server_seconds",
    "created_at",
]


def load_judgments(
    session: Session, *, split: Split | None = None, people: Sequence[str] = (), include_simulated: bool = False
) -> pd.DataFrame:
    """Every live judgment, a row each in the order of their making: JUDGMENT_COLUMNS.

    `question` is the number of the question's version that was answered, <NA> where it was not recorded;
    `server_seconds` is NaN where the server saw no time.

    Args:
        split: only pairs of this split; None takes all.
        people: names of those whose judgments are taken; empty takes all.
        include_simulated: take simulated annotators too, marked in the column `simulated`.
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
            Judgment.question_id,
            Judgment.seconds,
            Judgment.server_seconds,
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
    table["server_seconds"] = table["server_seconds"].astype(float)
    table["question"] = table["question"].astype("Int64")
    return table


def select_votes(judgments: pd.DataFrame) -> pd.DataFrame:
    """The judgments that count for rankings and agreement: no repeat, no gold pair, no skip."""
    counts = (judgments["repeat_no"] == 0) & judgments["gold_answer"].isna() & (judgments["choice"] != "skip")
    return judgments[counts].reset_index(drop=True)


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
