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
)


def count_peoples_answers(session: Session, method_id: int) -> int:
    """How often real people have answered a pair of a method's images, answers taken back or discarded included."""
    answers = select(func.count(Judgment.id)).join(Person, Person.id == Judgment.person_id)
    of_pairs = Judgment.pair_id.in_(select_pairs(method_id))
    return session.scalar(answers.where(of_pairs, Person.simulated.is_(False))) or 0


def select_pairs(method_id: int) -> Select[int]:
    """The ids of the pairs in which a method's images are, as a statement."""
    candidates = select(Candidate.id).where(Candidate.method_id == method_id)
    return select(Pair.id).where(or_(Pair.a_id.in_(candidates), Pair.b_id.in_(candidates)))


def remove_method(session: Session, data: Path, method: Method) -> list[Path]:
    """Remove a method, its candidates and their pairs, with the values and labels of these; simulated answers too.

    Returns:
        The image files that nothing refers to any more, to be removed once the session is committed.
    Raises:
        UserError: a person has judged one of its pairs.
    """
    if answers := count_peoples_answers(session, method.id):
        raise UserError(f"People answered pairs of {method.name} {answers:,} times; it stays.")
    pairs = select_pairs(method.id)
    labels = select(Label.id).where(Label.pair_id.in_(pairs))
    session.execute(delete(LabelJudgment).where(LabelJudgment.label_id.in_(labels)))
    for table in (Label, Judgment, Lease, Shortlist):
        session.execute(delete(table).where(table.pair_id.in_(pairs)))
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
