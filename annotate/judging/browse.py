"""List labelled pairs for review, those where people and a labeler differ too, and correct one.

Nothing here loads scikit-learn: the pages call it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, aliased

from annotate.judging.judgments import Answer, record_judgment
from annotate.judging.labels import select_pairs_of_tasks
from annotate.judging.people import lock_person
from db.errors import UserError
from db.models import (
    Candidate,
    Choice,
    Image,
    Judgment,
    Label,
    Method,
    Origin,
    Pair,
    Person,
    Picked,
    Side,
    Source,
    Split,
    Task,
)
from metrics.rankings import derive_pairs
from runs.tables import read_table

VIEW_MODE = "review"


@dataclass(frozen=True)
class PairDetails:
    """Details of a pair for an admin."""

    pair_id: int
    source: str
    split: Split
    reserved: bool
    methods: dict[Side, str]
    images: dict[Side, str]
    """SHA-256 of the two candidates' images."""
    lq: str | None
    """SHA-256 of the photo that was restored, where it is known."""
    p_a: float | None
    """Of the live machine label; None where there is none."""
    made_by: str | None


@dataclass(frozen=True)
class Disagreement:
    """A judged pair whose human and machine answers prefer different images."""

    pair: str
    """The pair's key."""
    human_p_a: float
    machine_p_a: float

    @property
    def confidence(self) -> float:
        """Confidence of the labeler, 0.5 … 1."""
        return max(self.machine_p_a, 1 - self.machine_p_a)


def sure_pairs(session: Session, *, surest_first: bool, limit: int, offset: int = 0) -> list[int]:
    """Ids of the pairs that carry a live machine label and no judgment, by the label's confidence."""
    confidence = func.abs(Label.p_a - 0.5)
    order = confidence.desc() if surest_first else confidence
    return list(
        session.scalars(_unjudged(select(Label.pair_id)).order_by(order, Label.pair_id).limit(limit).offset(offset))
    )


def count_machine_labels(session: Session) -> int:
    """Pairs that carry a live machine label and no judgment."""
    return session.scalar(_unjudged(select(func.count()).select_from(Label))) or 0


def _unjudged(statement: Select[int]) -> Select[int]:
    return statement.join(Pair, Pair.id == Label.pair_id).where(
        Label.origin == Origin.svm, Label.superseded_at.is_(None), Pair.judgment_count == 0
    )


def find_pairs(session: Session, keys: Sequence[str]) -> dict[str, int]:
    """Ids of the pairs of these keys; those that are not in this database are left out."""
    return dict(session.execute(select(Pair.key, Pair.id).where(Pair.key.in_(keys))).all())


def load_pairs(session: Session, pair_ids: Sequence[int]) -> list[PairDetails]:
    """The details of some pairs, in the order asked for."""
    a, b, method_a, method_b = aliased(Candidate), aliased(Candidate), aliased(Method), aliased(Method)
    image_a, image_b, lq = aliased(Image), aliased(Image), aliased(Image)
    statement = (
        select(Pair, Source, method_a.name, method_b.name, image_a.sha256, image_b.sha256, lq.sha256, Label)
        .join(Source, Source.id == Pair.source_id)
        .join(a, a.id == Pair.a_id)
        .join(b, b.id == Pair.b_id)
        .join(method_a, method_a.id == a.method_id)
        .join(method_b, method_b.id == b.method_id)
        .join(image_a, image_a.id == a.image_id)
        .join(image_b, image_b.id == b.image_id)
        .outerjoin(lq, lq.id == Source.lq_image_id)
        .outerjoin(Label, (Label.pair_id == Pair.id) & (Label.origin == Origin.svm) & Label.superseded_at.is_(None))
        .where(Pair.id.in_(pair_ids))
    )
    found = {
        pair.id: PairDetails(
            pair_id=pair.id,
            source=source.key,
            split=source.split,
            reserved=pair.reserved,
            methods={Side.a: name_a, Side.b: name_b},
            images={Side.a: sha256_a, Side.b: sha256_b},
            lq=sha256_lq,
            p_a=label.p_a if label else None,
            made_by=label.made_by if label else None,
        )
        for pair, source, name_a, name_b, sha256_a, sha256_b, sha256_lq, label in session.execute(statement)
    }
    return [found[pair_id] for pair_id in pair_ids if pair_id in found]


def load_answers(session: Session, pair_ids: Sequence[int]) -> dict[int, list[tuple[str, bool, Choice]]]:
    """(person, whether simulated, choice) of every live judgment that is not a repeat, by pair, in order.

    Those on the pair itself come first, then what answers to tasks tell of it.
    """
    statement = (
        select(Pair.id, Person.name, Person.simulated, Judgment.choice)
        .join(Judgment, Judgment.pair_id == Pair.id)
        .join(Person, Person.id == Judgment.person_id)
        .where(Pair.id.in_(pair_ids), Judgment.superseded_at.is_(None), Judgment.repeat_no == 0)
        .order_by(Judgment.id)
    )
    answers: defaultdict[int, list[tuple[str, bool, Choice]]] = defaultdict(list)
    for pair_id, name, simulated, choice in session.execute(statement):
        assert choice is not None  # only a task's answer has none
        answers[pair_id].append((name, simulated, choice))
    for pair_id, name, simulated, told in _load_answers_of_tasks(session, pair_ids):
        answers[pair_id].append((name, simulated, told))
    return answers


def _load_answers_of_tasks(session: Session, pair_ids: Sequence[int]) -> Iterator[tuple[int, str, bool, Choice]]:
    """(pair, person, whether simulated, what their answer to a task says of that pair), as far as it tells of it."""
    of_tasks: defaultdict[int, dict[tuple[str, str], int]] = defaultdict(dict)
    for row in session.execute(select_pairs_of_tasks().where(Pair.id.in_(pair_ids))):
        of_tasks[row.task_id][row.x, row.y] = row.pair_id
    statement = (
        select(Task.id, Task.size, Judgment.ranking, Person.name, Person.simulated)
        .join(Judgment, Judgment.task_id == Task.id)
        .join(Person, Person.id == Judgment.person_id)
        .where(Task.id.in_(of_tasks), Judgment.superseded_at.is_(None), Judgment.repeat_no == 0)
        .order_by(Judgment.id)
    )
    for task_id, size, ranking, name, simulated in session.execute(statement):
        for x, y, choice in derive_pairs(ranking, size) if ranking else []:
            if (x, y) in of_tasks[task_id]:
                yield of_tasks[task_id][x, y], name, simulated, Choice(choice)


def read_disagreements(judged: Path) -> tuple[list[Disagreement], int]:
    """(where the machine prefers the other image than people, the surest first; judged pairs that are not ties).

    Args:
        judged: `judged.csv` of a fit. Its machine answers are held-out ones: of no pair was the photo trained on.
    """
    rows = [Disagreement(row["pair"], float(row["human_p_a"]), float(row["machine_p_a"])) for row in read_table(judged)]
    decided = [row for row in rows if row.human_p_a != 0.5]
    found = [row for row in decided if (row.human_p_a > 0.5) != (row.machine_p_a > 0.5)]
    return sorted(found, key=lambda row: (-row.confidence, row.pair)), len(decided)


def correct_label(
    session: Session,
    person_id: int,
    pair_id: int,
    *,
    uuid: str,
    shown_left: Side,
    choice: Literal["left", "right", "tie"],
    seconds: float,
) -> Judgment:
    """Record what a person says instead of the machine: a judgment, from which on the pair counts as judged.

    It says that its pair was not picked at random: what was looked up to be corrected must never measure accuracy. The
    same uuid again returns the judgment that is there.

    Args:
        uuid: made with the page, one per pair shown.
        choice: by side of the screen.
    Raises:
        UserError: the pair is reserved for random picks, this person has judged it, or there is no such pair.
    """
    lock_person(session, person_id)
    pair = session.get(Pair, pair_id)
    if pair is None:
        raise UserError(f"There is no pair {pair_id}; reload the page.")
    if pair.reserved:
        raise UserError("This pair is kept for measuring accuracy, so it may only be judged on the Label page.")
    of_person = (Judgment.pair_id == pair_id, Judgment.person_id == person_id, Judgment.superseded_at.is_(None))
    standing = session.scalar(select(Judgment).where(*of_person, Judgment.repeat_no == 0))
    if standing is not None and standing.uuid != uuid:
        raise UserError("You have judged this pair already; change that answer in the history of the Label page.")
    answer = Answer(
        uuid=uuid,
        pair_id=pair_id,
        repeat_no=0,
        shown_left=shown_left,
        choice=_by_side(shown_left, choice),
        seconds=seconds,
        view_mode=VIEW_MODE,
        picked=Picked.leftover,
    )
    return record_judgment(session, person_id, answer)


def _by_side(shown_left: Side, choice: Literal["left", "right", "tie"]) -> Choice:
    if choice == "tie":
        return Choice.tie
    return Choice.a if (choice == "left") == (shown_left is Side.a) else Choice.b
