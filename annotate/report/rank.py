"""Read people's judgments as a table, and count head-to-head wins; `metrics.votes` ranks methods by them.

An *answer* is a judgment that counts there: live, of an ordinary pair or task, no repeat, no skip. A *vote* is one of a
pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session, aliased

from annotate.judging.people import get_person
from db.models import Candidate, Judgment, Method, Pair, Person, Side, Source, Split, Task, TaskCandidate
from metrics.answers import list_comparisons, read_answers
from metrics.rankings import RANKING_OF_CHOICE

JUDGED = (
    Judgment.id,
    Source.key,
    Source.group,
    Source.split,
    Person.name,
    Person.simulated,
    Judgment.asked,
    Judgment.picked,
    Judgment.repeat_no,
    Judgment.question_id,
    Judgment.seconds,
    Judgment.server_seconds,
    Judgment.created_at,
)
JUDGMENT_COLUMNS = [
    *("judgment_id", "source", "group", "split", "person", "simulated", "asked", "picked", "repeat_no", "question"),
    *("seconds", "server_seconds", "created_at", "pair", "gold_answer", "method_a", "method_b", "choice"),
    *("shown_left", "methods", "ranking", "places"),
]
"""JUDGED, then what only pairs have or only tasks."""
RANKED = "ranked"
"""Choice of a judgment whose answer is a ranking of a task."""
ANSWER_COLUMNS = {
    "judgment_id": "judgment",
    "pair": "task",
    **{
        name: name
        for name in (
            *("source", "group", "split", "person", "simulated", "asked", "methods", "ranking", "places"),
            *("seconds", "server_seconds", "picked", "created_at"),
        )
    },
}
"""Columns of `load_judgments` by their names among answers."""


def load_judgments(
    session: Session, *, split: Split | None = None, people: Sequence[str] = (), include_simulated: bool = False
) -> pd.DataFrame:
    """Every live judgment, a row each in the order of their making: JUDGMENT_COLUMNS.

    `question` is the number of the question's version that was answered, <NA> where it was not recorded;
    `server_seconds` is NaN where the server saw no time. Of a task `pair` is its key, `gold_answer` a ranking, `choice`
    RANKED or skip, and there are no method_a, method_b and shown_left. Every row has `methods`, a tuple by letter, its
    `ranking` (None of a skip) and `places`, the letters as they stood on the screen.

    Args:
        split: only pairs of this split; None takes all.
        people: names of those whose judgments are taken; empty takes all.
        include_simulated: take simulated annotators too, marked in the column `simulated`.
    Raises:
        UserError: there is no person of such a name.
    """
    wanted: list[ColumnElement[bool]] = [Judgment.superseded_at.is_(None)]
    if split is not None:
        wanted.append(Source.split == split)
    if people:
        wanted.append(Person.id.in_([get_person(session, name).id for name in people]))
    if not include_simulated:
        wanted.append(Person.simulated.is_(False))
    rows = [*_load_of_pairs(session, wanted), *_load_of_tasks(session, wanted)]
    table = pd.DataFrame(rows, columns=JUDGMENT_COLUMNS).sort_values("judgment_id", ignore_index=True)
    table["simulated"] = table["simulated"].astype(bool)
    table["server_seconds"] = table["server_seconds"].astype(float)
    table["question"] = table["question"].astype("Int64")
    return table


def load_answers(
    session: Session, *, split: Split | None = None, people: Sequence[str] = (), include_simulated: bool = False
) -> pd.DataFrame:
    """The answers that count, of pairs and tasks, as `load_judgments` selects and `select_answers` names them."""
    return select_answers(load_judgments(session, split=split, people=people, include_simulated=include_simulated))


def _load_of_pairs(session: Session, wanted: Sequence[ColumnElement[bool]]) -> list[tuple[Any, ...]]:
    """Rows of JUDGMENT_COLUMNS of judgments of pairs."""
    first, second = aliased(Candidate), aliased(Candidate)
    method_a, method_b = aliased(Method), aliased(Method)
    statement = (
        select(*JUDGED, Pair.key, Pair.gold_answer, method_a.name, method_b.name, Judgment.choice, Judgment.shown_left)
        .join(Pair, Pair.id == Judgment.pair_id)
        .join(Source, Source.id == Pair.source_id)
        .join(first, first.id == Pair.a_id)
        .join(second, second.id == Pair.b_id)
        .join(method_a, method_a.id == first.method_id)
        .join(method_b, method_b.id == second.method_id)
        .join(Person, Person.id == Judgment.person_id)
        .where(*wanted)
    )
    rows = []
    for *judged, key, gold, a, b, choice, left in session.execute(statement):
        places = "ab" if left == Side.a else "ba"
        said = (str(choice), str(left), (a, b), RANKING_OF_CHOICE.get(str(choice)), places)
        rows.append((*judged, key, gold, a, b, *said))
    return rows


def _load_of_tasks(session: Session, wanted: Sequence[ColumnElement[bool]]) -> list[tuple[Any, ...]]:
    """Rows of JUDGMENT_COLUMNS of judgments of tasks."""
    statement = (
        select(*JUDGED, Task.key, Task.gold_ranking, Task.id, Judgment.choice, Judgment.ranking, Judgment.places)
        .join(Task, Task.id == Judgment.task_id)
        .join(Source, Source.id == Task.source_id)
        .join(Person, Person.id == Judgment.person_id)
        .where(*wanted)
    )
    found = session.execute(statement).all()
    if not found:
        return []
    methods: dict[int, list[str]] = {}
    lettered = (
        select(TaskCandidate.task_id, Method.name)
        .join(Candidate, Candidate.id == TaskCandidate.candidate_id)
        .join(Method, Method.id == Candidate.method_id)
        .order_by(TaskCandidate.task_id, TaskCandidate.letter)
    )
    for task, name in session.execute(lettered):
        methods.setdefault(task, []).append(name)
    return [
        (*judged, key, gold, None, None, str(choice or RANKED), None, tuple(methods[task]), ranking, places)
        for *judged, key, gold, task, choice, ranking, places in found
    ]


def select_votes(judgments: pd.DataFrame) -> pd.DataFrame:
    """The judgments of pairs that count for rankings and agreement: no repeat, no gold pair, no skip."""
    return judgments[_counts(judgments) & (judgments["choice"] != RANKED)].reset_index(drop=True)


def select_answers(judgments: pd.DataFrame) -> pd.DataFrame:
    """The judgments that count, of pairs and tasks: ANSWER_COLUMNS, see `metrics.answers`."""
    chosen = judgments[_counts(judgments)].reset_index(drop=True)
    answers: pd.DataFrame = chosen[list(ANSWER_COLUMNS)].rename(columns=ANSWER_COLUMNS)
    for name in ("split", "asked", "picked"):
        answers[name] = answers[name].map(str)
    return answers


def _counts(judgments: pd.DataFrame) -> pd.Series[bool]:
    counts: pd.Series[bool] = (
        (judgments["repeat_no"] == 0) & judgments["gold_answer"].isna() & (judgments["choice"] != "skip")
    )
    return counts


def compute_win_matrix(answers: pd.DataFrame, methods: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Head to head: (share of the answers that the row's method won over the column's, number of answers).

    A tie is half a win for each; the share is NaN where the two never met, and on the diagonal.
    """
    votes = list_comparisons(read_answers(answers))
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
