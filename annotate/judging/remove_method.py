"""Take a method out of a project with all of its restored images, where no person has judged one of them."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Select, delete, exists, func, or_, select
from sqlalchemy.orm import Session

from db.errors import UserError
from db.images import image_path
from db.models import (
    Candidate,
    Image,
    Judgment,
    Label,
    LabelJudgment,
    Lease,
    Method,
    MetricValue,
    Pair,
    Person,
    Shortlist,
    Source,
    Task,
    TaskCandidate,
)


def count_peoples_answers(session: Session, method_id: int) -> int:
    """How often real people have answered about a method's images, answers taken back or discarded included."""
    answers = select(func.count(Judgment.id)).join(Person, Person.id == Judgment.person_id)
    about = or_(Judgment.pair_id.in_(select_pairs(method_id)), Judgment.task_id.in_(select_tasks(method_id)))
    return session.scalar(answers.where(about, Person.simulated.is_(False))) or 0


def select_pairs(method_id: int) -> Select[int]:
    """The ids of the pairs in which a method's images are, as a statement."""
    candidates = select(Candidate.id).where(Candidate.method_id == method_id)
    return select(Pair.id).where(or_(Pair.a_id.in_(candidates), Pair.b_id.in_(candidates)))


def select_tasks(method_id: int) -> Select[int]:
    """The ids of the tasks in which a method's images are, as a statement."""
    candidates = select(Candidate.id).where(Candidate.method_id == method_id)
    return select(TaskCandidate.task_id).where(TaskCandidate.candidate_id.in_(candidates))


def remove_method(session: Session, data: Path, method: Method) -> list[Path]:
    """Remove a method, its candidates, their pairs and tasks, with the values and labels; simulated answers too.

    A task goes whole, and so do the labels that were made of its answers; the other pairs of its images stay.

    Returns:
        The image files that nothing refers to any more, to be removed once the session is committed.
    Raises:
        UserError: a person has judged one of its pairs or tasks.
    """
    if answers := count_peoples_answers(session, method.id):
        raise UserError(f"People answered pairs of {method.name} {answers:,} times; it stays.")
    pairs = select_pairs(method.id)
    tasks = list(session.scalars(select_tasks(method.id)))
    made_of_tasks = (
        select(LabelJudgment.label_id)
        .join(Judgment, Judgment.id == LabelJudgment.judgment_id)
        .where(Judgment.task_id.in_(tasks))
    )
    labels = list(session.scalars(select(Label.id).where(or_(Label.pair_id.in_(pairs), Label.id.in_(made_of_tasks)))))
    session.execute(delete(LabelJudgment).where(LabelJudgment.label_id.in_(labels)))
    session.execute(delete(Label).where(Label.id.in_(labels)))
    for table in (Judgment, Lease, Shortlist):
        session.execute(delete(table).where(or_(table.pair_id.in_(pairs), table.task_id.in_(tasks))))
    session.execute(delete(TaskCandidate).where(TaskCandidate.task_id.in_(tasks)))
    session.execute(delete(Task).where(Task.id.in_(tasks)))
    images = session.scalars(
        select(Image).join(Candidate, Candidate.image_id == Image.id).where(Candidate.method_id == method.id).distinct()
    ).all()
    session.execute(delete(Pair).where(Pair.id.in_(pairs)))
    session.execute(delete(Candidate).where(Candidate.method_id == method.id))
    unused = [image for image in images if not is_used(session, image.id)]
    numbers = [image.id for image in unused]
    session.execute(delete(MetricValue).where(MetricValue.image_id.in_(numbers)))
    session.execute(delete(Image).where(Image.id.in_(numbers)))
    session.delete(method)
    session.flush()
    return [image_path(data, image.sha256, image.suffix) for image in unused]


def is_used(session: Session, image_id: int) -> bool:
    """Whether an image is a photo's or another candidate's."""
    used = or_(
        exists().where(Candidate.image_id == image_id),
        exists().where(or_(Source.lq_image_id == image_id, Source.hq_image_id == image_id)),
    )
    return bool(session.scalar(select(used)))
