"""Resolve judgments into labels, those about several candidates too: a label is of a pair."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import pandas as pd
from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session, aliased

from annotate.judging.people import get_person
from db.errors import UserError
from db.models import (
    Choice,
    Judgment,
    Label,
    LabelJudgment,
    Origin,
    Pair,
    Person,
    Task,
    TaskCandidate,
    utc_now,
)
from db.records import SIMULATED
from metrics.rankings import derive_pairs

RESOLVE_METHODS = ("majority", "dawid-skene")


@dataclass
class ResolveReport:
    """Result of `resolve_labels`; counts of labels."""

    added: int = 0
    replaced: int = 0
    withdrawn: int = 0
    """Labels whose judgments were all taken back."""
    unchanged: int = 0


def resolve_labels(
    session: Session,
    method: str = "majority",
    *,
    exclude_people: Iterable[str] = (),
    include_simulated: bool = False,
) -> ResolveReport:
    """Turn the live judgments of each pair into one human label, tracing it to them.

    A task's answer is a vote on each pair that it tells of, with a part of its weight (`load_votes`): one judgment may
    be behind several labels.

    Skips, repeats and gold pairs make no label. A label whose value and judgments stay the same keeps its row. A label
    imported without judgments (made by 'imported:…') stays, also where its pair is judged: nobody knows how many
    answers it stands for.

    Args:
        method: 'majority': p_a is the share of the votes' weight for a, a tie being half a vote for each.
            'dawid-skene': the posterior of Dawid & Skene (1979) over a, b, tie from crowd-kit, which weighs people by
            their reliability.
        exclude_people: names whose judgments are left out.
        include_simulated: count simulated annotators too; the labels then say so in `made_by`.
    Raises:
        UserError: unknown method, or no such person to leave out.
    """
    if method not in RESOLVE_METHODS:
        raise UserError(f"Unknown method {method!r}; choose one of {', '.join(RESOLVE_METHODS)}.")
    excluded = {get_person(session, name).id for name in exclude_people}
    votes = load_votes(session, excluded=excluded, include_simulated=include_simulated)
    p_a = compute_majority(votes) if method == "majority" else compute_dawid_skene(votes)
    weights = compute_weights(votes)
    made_by = f"{method} {SIMULATED}" if include_simulated else method
    report = ResolveReport()
    live = {
        label.pair_id: label
        for label in session.scalars(select(Label).where(Label.origin == Origin.human, Label.superseded_at.is_(None)))
    }
    traced = _traced_judgments(session)
    new: list[tuple[Label, list[int]]] = []
    for pair_id, group in votes.set_index("pair_id").groupby(level=0):
        assert isinstance(pair_id, int)
        old, numbers = live.pop(pair_id, None), sorted(group["judgment_id"])
        p_a_of_pair, weight = float(p_a[pair_id]), float(weights[pair_id])
        if old is not None and _is_imported(old):
            continue
        new_values = (p_a_of_pair, weight, made_by, numbers)
        if old is not None and (old.p_a, old.weight, old.made_by, traced[old.id]) == new_values:
            report.unchanged += 1
            continue
        if old is not None:
            old.superseded_at = utc_now()
        report.replaced += old is not None
        report.added += old is None
        agreement = max(Counter(group["choice"]).values()) / len(group)
        label = Label(
            pair_id=pair_id,
            origin=Origin.human,
            made_by=made_by,
            p_a=p_a_of_pair,
            weight=weight,
            agreement=agreement,
        )
        new.append((label, numbers))
    for old in live.values():
        if not _is_imported(old):
            old.superseded_at = utc_now()
            report.withdrawn += 1
    _add_labels(session, new)
    return report


def _is_imported(label: Label) -> bool:
    return label.made_by.startswith("imported:")


def _add_labels(session: Session, new: list[tuple[Label, list[int]]]) -> None:
    """Add labels and the ids of the judgments behind each."""
    session.flush()  # The superseded rows give way first: only one label of a pair may be live.
    session.add_all(label for label, _ in new)
    session.flush()
    session.add_all(LabelJudgment(label_id=label.id, judgment_id=n) for label, numbers in new for n in numbers)
    session.flush()


def load_votes(session: Session, *, excluded: Collection[int] = (), include_simulated: bool = False) -> pd.DataFrame:
    """Live votes on pairs: judgment_id, pair_id, person, choice (a, b, tie), weight; in one order in every database.

    An answer to a pair is one row of weight 1. An answer to a task is a row for each pair that it tells of, which share
    the weight 1 among them: they come of one look of one person. The best of four tells of three pairs, one third each.
    """
    counted = [Judgment.superseded_at.is_(None), Judgment.repeat_no == 0]
    if excluded:
        counted.append(Person.id.not_in(excluded))
    if not include_simulated:
        counted.append(Person.simulated.is_(False))
    # Sorted here, since databases disagree on the order of text.
    found = sorted([*_votes_on_pairs(session, counted), *_votes_on_tasks(session, counted)])
    rows = [(number, pair_id, person, choice, weight) for _, person, number, pair_id, choice, weight in found]
    return pd.DataFrame(rows, columns=["judgment_id", "pair_id", "person", "choice", "weight"])


Vote = tuple[str, str, int, int, str, float]
"""Key of the pair, person, judgment's id, pair's id, choice and weight."""


def _votes_on_pairs(session: Session, counted: list[ColumnElement[bool]]) -> Iterator[Vote]:
    statement = (
        select(Pair.key, Person.public_id, Judgment.id, Pair.id, Judgment.choice)
        .join(Person, Person.id == Judgment.person_id)
        .join(Pair, Pair.id == Judgment.pair_id)
        .where(*counted, Judgment.choice != Choice.skip, Pair.gold_answer.is_(None))
    )
    for key, person, number, pair_id, choice in session.execute(statement):
        yield key, person, number, pair_id, str(choice), 1.0


def _votes_on_tasks(session: Session, counted: list[ColumnElement[bool]]) -> Iterator[Vote]:
    statement = (
        select(Task.id, Task.size, Person.public_id, Judgment.id, Judgment.ranking)
        .join(Person, Person.id == Judgment.person_id)
        .join(Task, Task.id == Judgment.task_id)
        .where(*counted, Judgment.ranking.is_not(None), Task.gold_ranking.is_(None))
    )
    answers = session.execute(statement).all()
    if not answers:
        return
    pairs = {(row.task_id, row.x, row.y): row for row in session.execute(select_pairs_of_tasks())}
    for task_id, size, person, number, ranking in answers:
        assert ranking is not None  # as asked for
        told = derive_pairs(ranking, size)
        for x, y, choice in told:
            pair = pairs.get((task_id, x, y))
            if pair is not None and pair.gold_answer is None:
                yield pair.key, person, number, pair.pair_id, choice, 1 / len(told)


def find_pairs_told_by_tasks(session: Session) -> set[int]:
    """Ids of the pairs that live answers to tasks tell of, those of simulated annotators too."""
    counted = [Judgment.superseded_at.is_(None), Judgment.repeat_no == 0]
    return {pair_id for _, _, _, pair_id, _, _ in _votes_on_tasks(session, counted)}


def select_pairs_of_tasks() -> Select[int, str, str, int, str, str | None]:
    """The pairs of the judged tasks: task_id, letters x < y, pair_id, key, gold_answer; x is the pair's a."""
    x, y = aliased(TaskCandidate), aliased(TaskCandidate)
    return (
        select(
            Task.id.label("task_id"),
            x.letter.label("x"),
            y.letter.label("y"),
            Pair.id.label("pair_id"),
            Pair.key,
            Pair.gold_answer,
        )
        .join(x, x.task_id == Task.id)
        .join(y, (y.task_id == Task.id) & (y.letter > x.letter))
        .join(Pair, (Pair.a_id == x.candidate_id) & (Pair.b_id == y.candidate_id))
        .where(Task.judgment_count > 0)
    )


def _traced_judgments(session: Session) -> defaultdict[int, list[int]]:
    """The judgments behind each live human label, by label id, in order."""
    statement = (
        select(LabelJudgment.label_id, LabelJudgment.judgment_id)
        .join(Label, Label.id == LabelJudgment.label_id)
        .where(Label.origin == Origin.human, Label.superseded_at.is_(None))
        .order_by(LabelJudgment.judgment_id)
    )
    traced: defaultdict[int, list[int]] = defaultdict(list)
    for label_id, judgment_id in session.execute(statement):
        traced[label_id].append(judgment_id)
    return traced


def compute_majority(votes: pd.DataFrame) -> pd.Series[float]:
    """p_a by pair_id: the share of the votes' weight that is for a, ties counting one half."""
    worth = votes["choice"].map({"a": 1.0, "b": 0.0, "tie": 0.5}).astype(float)
    weight = votes["weight"].groupby(votes["pair_id"]).sum()
    return (worth * votes["weight"]).groupby(votes["pair_id"]).sum() / weight


def compute_weights(votes: pd.DataFrame) -> pd.Series[float]:
    """Weight of a label by pair_id: the sum of its votes' weights, 1 at most.

    All labels that one answer to a task makes alone weigh as much together as the one of an answer to a pair.
    """
    return votes["weight"].groupby(votes["pair_id"]).sum().clip(upper=1.0)


def compute_dawid_skene(votes: pd.DataFrame) -> pd.Series[float]:
    """p_a by pair_id: P(a) + P(tie) / 2 of the Dawid-Skene posterior (crowd-kit, 100 iterations).

    The last digits depend on the order of the votes. The method knows no weights: the pairs that one answer to a task
    tells of count as that many answers of their person, as if independent, so that who answers tasks is judged surer
    to be reliable or not than they showed. What a label weighs is not from here (`compute_weights`).

    Source: Dawid & Skene, Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm, 1979.
    """
    from crowdkit.aggregation import DawidSkene  # only here: it is slow to import

    if votes.empty:
        return pd.Series(dtype=float)
    table = votes.rename(columns={"pair_id": "task", "person": "worker", "choice": "label"})
    posterior = DawidSkene(n_iter=100).fit_predict_proba(table[["task", "worker", "label"]])
    posterior = posterior.reindex(columns=["a", "tie", "b"], fill_value=0.0)
    # crowd-kit's rows sum to one only to some ten digits; a probability above one is none.
    shares = posterior.div(posterior.sum(axis=1), axis=0)
    return (shares["a"] + 0.5 * shares["tie"]).clip(0.0, 1.0)
