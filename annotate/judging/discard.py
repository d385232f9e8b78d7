"""Take a person's answers out of everything that is made of judgments, and put them back.

The rows stay, marked with `discarded_at`. Those that stood are superseded too, so that they count nowhere: the pairs
and tasks want other people's judgments instead, and no label, ranking, report or dataset is made of them any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Delete, Update, delete, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from annotate.judging.people import count_answers, disable_person, get_person, lock_person
from db.models import Judgment, Label, LabelJudgment, Lease, Origin, Pair, Person, Task, utc_now
from db.records import STOOD
from db.studies import Participant, StudyPair

BATCH = 500
JUDGED: tuple[tuple[type[Pair] | type[Task], InstrumentedAttribute[int | None]], ...] = (
    (Pair, Judgment.pair_id),
    (Task, Judgment.task_id),
)


def list_people(session: Session) -> Sequence[tuple[Person, int | None, int | None, datetime | None]]:
    """(person, live judgments, discarded judgments, when the latest live one was given) by name.

    The last three are None for who has never judged.
    """
    live = Judgment.superseded_at.is_(None)
    made = (
        select(
            Judgment.person_id,
            func.count().filter(live).label("judgments"),
            func.count().filter(STOOD).label("discarded"),
            func.max(Judgment.created_at).filter(live).label("last"),
        )
        .group_by(Judgment.person_id)
        .subquery()
    )
    rows = select(Person, made.c.judgments, made.c.discarded, made.c.last)
    joined = rows.outerjoin(made, made.c.person_id == Person.id).order_by(Person.name)
    return session.execute(joined).tuples().all()


@dataclass(frozen=True)
class Change:
    """Numbers of what was discarded or restored."""

    judgments: int
    pairs: int
    """Of which one judgment fewer or more counts; repeats count for none."""
    tasks: int = 0
    """Of three images and more, likewise."""
    labels: int = 0
    """Withdrawn since they were made of these judgments; the next fit or export makes them of what is left."""
    answered_anew: int = 0
    """Left out of a restoring: the person has answered the same again since."""


def discard_answers(session: Session, name: str) -> Change:
    """Take all answers of a person out, and give their tasks back to the queue.

    Raises:
        UserError: no such person.
    """
    person_id = get_person(session, name).id
    lock_person(session, person_id)
    now = utc_now()
    own = (Judgment.person_id == person_id, Judgment.superseded_at.is_(None))
    made_of_them = select(LabelJudgment.label_id).join(Judgment, Judgment.id == LabelJudgment.judgment_id).where(*own)
    labels = _change(
        session,
        update(Label)
        .where(Label.id.in_(made_of_them), Label.origin == Origin.human, Label.superseded_at.is_(None))
        .values(superseded_at=now),
    )
    pairs, tasks = (
        _change(
            session,
            update(table)
            .where(table.id.in_(select(of_judgment).where(*own, Judgment.repeat_no == 0)))
            .values(judgment_count=table.judgment_count - 1),
        )
        for table, of_judgment in JUDGED
    )
    judgments = _change(session, update(Judgment).where(*own).values(superseded_at=now, discarded_at=now))
    before = (Judgment.person_id == person_id, Judgment.discarded_at.is_(None))
    _change(session, update(Judgment).where(*before).values(discarded_at=now))
    _change(session, delete(Lease).where(Lease.person_id == person_id))
    _recount_study(session, person_id)
    session.expire_all()
    return Change(judgments, pairs, tasks, labels)


def _recount_study(session: Session, person_id: int) -> None:
    """Count anew the answers of a study's pairs where this person is a participant of it, and the person's own."""
    study_id = session.scalar(select(Participant.study_id).where(Participant.person_id == person_id))
    if study_id is None:
        return
    theirs = select(Participant.person_id).where(Participant.study_id == StudyPair.study_id)
    counts = (Judgment.pair_id == StudyPair.pair_id, Judgment.repeat_no == 0, Judgment.superseded_at.is_(None))
    done = select(func.count(Judgment.id)).where(Judgment.person_id.in_(theirs), *counts).scalar_subquery()
    _change(session, update(StudyPair).where(StudyPair.study_id == study_id).values(done=done))
    own = (Judgment.person_id == person_id, *counts[1:])
    of_study = select(StudyPair.pair_id).where(StudyPair.study_id == study_id)
    answers = select(func.count(Judgment.id)).where(*own, Judgment.pair_id.in_(of_study)).scalar_subquery()
    _change(session, update(Participant).where(Participant.person_id == person_id).values(answers=answers))


def _change(session: Session, statement: Update | Delete) -> int:
    """Run a statement over many rows; how many it changed."""
    result = session.execute(statement.execution_options(synchronize_session=False))
    return int(result.rowcount)  # type: ignore[attr-defined]


def restore_answers(session: Session, name: str) -> Change:
    """Put all discarded answers of a person back; what they have answered anew since stands as it is.

    Raises:
        UserError: no such person.
    """
    person_id = get_person(session, name).id
    lock_person(session, person_id)
    own = Judgment.person_id == person_id
    showing = (Judgment.pair_id, Judgment.task_id, Judgment.repeat_no)
    live = {tuple(row) for row in session.execute(select(*showing).where(own, Judgment.superseded_at.is_(None)))}
    stood = session.execute(select(Judgment.id, *showing).where(own, STOOD).order_by(Judgment.id.desc())).all()
    back = []
    for number, *of in stood:
        if tuple(of) not in live:  # else answered anew, or discarded twice: the latest one comes back
            live.add(tuple(of))
            back.append({"id": number, "superseded_at": None, "discarded_at": None})
    if back:
        session.execute(update(Judgment), back)
    _change(session, update(Judgment).where(own, Judgment.discarded_at.is_not(None)).values(discarded_at=None))
    numbers = {row["id"] for row in back}
    counted = [row for row in stood if row.id in numbers and row.repeat_no == 0]
    pairs, tasks = ([of for row in counted if (of := getattr(row, name))] for name in ("pair_id", "task_id"))
    for (table, _), of_them in zip(JUDGED, (pairs, tasks), strict=True):
        for start in range(0, len(of_them), BATCH):
            ids = of_them[start : start + BATCH]
            _change(session, update(table).where(table.id.in_(ids)).values(judgment_count=table.judgment_count + 1))
    _recount_study(session, person_id)
    session.expire_all()
    return Change(len(back), len(pairs), len(tasks), answered_anew=len(stood) - len(back))


def disable_and_describe(session: Session, name: str, how_to_discard: str) -> str:
    """Disable a person; returns what to say of it.

    Args:
        how_to_discard: what takes the answers out: a button, or words to type.
    Raises:
        UserError: no such person, or the only admin.
    """
    person = disable_person(session, name)
    answers = count_answers(session, person)
    offer = f" Their answers still count, {answers:,} in all: {how_to_discard} takes them out." if answers else ""
    return f"{person.name} disabled.{offer}"


def describe_discard(name: str, change: Change) -> str:
    """Describe a discard in one sentence or two."""
    tasks = f"{_count(change.tasks, 'task')} of more" if change.tasks else ""
    back = f"{' and '.join(filter(None, [_count(change.pairs, 'pair'), tasks]))} back in the queue"
    labels = f", {_count(change.labels, 'label')} made of them withdrawn: fit and export again" if change.labels else ""
    return f"{_count(change.judgments, 'answer')} of {name} discarded; {back}{labels}. Restoring puts them back."


def describe_restore(name: str, change: Change) -> str:
    """Describe a restore of discarded answers."""
    anew = f"; {change.answered_anew:,} stay out, answered anew since" if change.answered_anew else ""
    return f"{_count(change.judgments, 'answer')} of {name} restored{anew}"


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"
