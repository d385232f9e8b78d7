"""Add sources, methods, candidates and metric values: what every producer of images calls."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from sqlalchemy import ColumnElement, Insert, and_, func, or_, select
from sqlalchemy.orm import Session, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.util import identity_key

from db.errors import UserError
from db.models import (
    Base,
    Candidate,
    Choice,
    Image,
    Judgment,
    Method,
    MetricValue,
    Person,
    Source,
    Split,
)

MAX_SEED = 2**31 - 1
"""The largest seed that a row holds."""
GROUP_JOINT = " & "
"""Between the persons' names of a group that several were joined to, since they share a photo."""


def candidate_key(source_key: str, method_name: str, seed: int) -> str:
    """A candidate's name that is the same in every database: 32 hex digits."""
    return hashlib.sha256(f"{source_key}\n{method_name}\n{seed}".encode()).hexdigest()[:32]


def pair_key(first: str, second: str) -> tuple[str, bool]:
    """(the pair's 32 hex digits, whether `first` is its a), whichever way round the candidate keys are given."""
    a, b = sorted((first, second))
    return hashlib.sha256(f"{a}\n{b}".encode()).hexdigest()[:32], a == first


def task_key(candidate_keys: Iterable[str]) -> str:
    """Return the name of a task of several candidates, whichever way round their keys are given: 32 hex digits."""
    return hashlib.sha256("\n".join(sorted(candidate_keys)).encode()).hexdigest()[:32]


def draw_split(group: str, seed: int, val_share: float, test_share: float) -> Split:
    """The split of a group: test, val or train by a seeded hash, the same whenever it is drawn."""
    draw = int(hashlib.sha256(f"{seed}\n{group}".encode()).hexdigest()[:13], 16) / 16**13
    if draw < test_share:
        return Split.test
    return Split.val if draw < test_share + val_share else Split.train


def is_in_group(person: str, group: str) -> bool:
    """Whether the photos of this person are in the group: it is named after them, alone or with others."""
    return person == group or person in group.split(GROUP_JOINT)


def insert_row(session: Session, statement: Insert, row: Base) -> None:
    """Write a new row at once, and let the session know it.

    A flush writes the same for more than twice the processor time: it looks for what else has to be written before.

    Args:
        statement: `insert(table)`, built once; its columns are named as the row's attributes.
    """
    values = {name: value for name, value in vars(row).items() if not name.startswith("_")}
    made = session.connection().execute(statement, values).inserted_primary_key
    assert made is not None
    (row_id,) = made
    gone = session.identity_map.get(identity_key(type(row), row_id))
    if gone is not None:  # SQLite gives the number of a deleted row anew
        session.expunge(gone)
    set_committed_value(row, "id", row_id)
    make_transient_to_detached(row)
    session.add(row)


def add_method(
    session: Session, name: str, settings: dict[str, object] | None = None, run_id: int | None = None
) -> Method:
    """The method of that name, added where it is new."""
    method = session.scalar(select(Method).where(Method.name == name))
    if method is None:
        method = Method(name=name, settings=settings or {}, run_id=run_id)
        session.add(method)
        session.flush()
    return method


def add_source(
    session: Session,
    key: str,
    split: Split,
    *,
    group: str | None = None,
    caption: str | None = None,
    lq: Image | None = None,
    hq: Image | None = None,
) -> Source:
    """The source of that key; added where it is new, completed where it lacked an image or a caption.

    Raises:
        UserError: it is there with another lq image, hq image, caption or group.
    """
    source = session.scalar(select(Source).where(Source.key == key))
    if source is None:
        source = Source(
            key=key,
            group=group or key,
            split=split,
            caption=caption,
            lq_image_id=lq.id if lq else None,
            hq_image_id=hq.id if hq else None,
        )
        session.add(source)
        session.flush()
        return source
    if group is not None and not is_in_group(group, source.group):
        raise UserError(
            f"source {key!r} is already stored with group {source.group!r}, not {group!r}; rename one of them"
        )
    for what, image, stored in (("lq", lq, source.lq_image_id), ("hq", hq, source.hq_image_id)):
        if image is not None and stored is not None and image.id != stored:
            raise UserError(
                f"source {key!r} is already stored with another {what} image; give the new photo another name"
            )
    if caption is not None and source.caption is not None and caption != source.caption:
        raise UserError(f"source {key!r} is already stored with the caption {source.caption!r}, not {caption!r}")
    source.lq_image_id = source.lq_image_id or (lq.id if lq else None)
    source.hq_image_id = source.hq_image_id or (hq.id if hq else None)
    source.caption = source.caption if source.caption is not None else caption
    return source


def add_candidate(session: Session, source: Source, method: Method, image: Image, seed: int = 0) -> Candidate:
    """The candidate of that source, method and seed, added where it is new.

    Raises:
        UserError: it is there with another image.
    """
    candidate = session.scalar(
        select(Candidate).where(
            Candidate.source_id == source.id, Candidate.method_id == method.id, Candidate.seed == seed
        )
    )
    if candidate is None:
        candidate = Candidate(source_id=source.id, method_id=method.id, image_id=image.id, seed=seed)
        session.add(candidate)
        session.flush()
    elif candidate.image_id != image.id:
        raise UserError(
            f"source {source.key!r} is already stored with another image by method {method.name!r}, seed {seed}; "
            "import the new outputs under a new method name"
        )
    return candidate


def add_metric_value(
    session: Session,
    image: Image,
    metric: str,
    version: str,
    *,
    value: float | None,
    raw_value: float | None,
    reference: str = "",
    failure: str | None = None,
) -> MetricValue:
    """Store one metric value, once per image, metric, version and reference; NaN and infinity are failures.

    Args:
        value: oriented so that higher is better.
        raw_value: as the metric gave it.
        reference: SHA-256 of the reference image, empty where the metric takes none.
    """
    if failure is None and (value is None or not math.isfinite(value)):
        value, raw_value, failure = None, None, f"the metric gave {value}"
    row = session.scalar(
        select(MetricValue).where(
            MetricValue.image_id == image.id,
            MetricValue.metric == metric,
            MetricValue.version == version,
            MetricValue.reference == reference,
        )
    )
    if row is None:
        row = MetricValue(image_id=image.id, metric=metric, version=version, reference=reference)
        session.add(row)
    row.value, row.raw_value, row.failure = value, raw_value, failure
    session.flush()
    return row


SIMULATED = "with simulated annotators"

STOOD: ColumnElement[bool] = and_(
    Judgment.discarded_at.is_not(None), Judgment.superseded_at.is_not_distinct_from(Judgment.discarded_at)
)
"""Of discarded judgments those that counted, and not what their person had taken back before."""


DECIDED: ColumnElement[bool] = or_(
    Judgment.choice.in_([Choice.a, Choice.b]), and_(Judgment.ranking.is_not(None), Judgment.ranking.contains(">"))
)
"""Of answers those that say of some candidate that it is better than another: no skip, and not all tied."""


def count_discarded(session: Session, *, include_simulated: bool = True) -> tuple[int, int]:
    """(answers that counted and were discarded, the people who gave them)."""
    statement = (
        select(func.count(), func.count(Judgment.person_id.distinct()))
        .join(Person, Person.id == Judgment.person_id)
        .where(STOOD)
    )
    if not include_simulated:
        statement = statement.where(Person.simulated.is_(False))
    answers, people = session.execute(statement).one()
    return answers, people


def describe_discarded(answers: int, people: int) -> str:
    """Describe how many answers a dataset, report or labeler leaves out; '' for none."""
    if not answers:
        return ""
    given = f"{answers:,} answer{'s' if answers > 1 else ''}"
    whose = f"{people:,} people" if people > 1 else "1 person"
    return f"{given} of {whose} discarded by an admin: left out"
