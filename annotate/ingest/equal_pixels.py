"""Find candidates of one source that show the same picture: they make no pair and are in no task together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from annotate.ingest.image_files import batches
from annotate.judging.pairs import same_picture
from db.models import Candidate, Image, Lease, Method, Pair, Source, Task, TaskCandidate
from db.pixel_hashes import hash_pixels
from db.session import Database


@dataclass(frozen=True)
class EqualPair:
    """A pair, or a task, of which two images have the same pixels."""

    pair_id: int | None
    """None of a task."""
    source: str
    methods: tuple[str, str]

    def describe(self) -> str:
        """Its methods in words."""
        return f"{self.methods[0]} and {self.methods[1]} show the same pixels: not asked any more"


def hash_candidates(database: Database, data: Path) -> dict[int, str]:
    """Image id to the hash of its pixels, of those candidates that could look like another one of their source.

    Takes some milliseconds per image at the first call (see `db.pixel_hashes`): call it outside of any
    transaction.
    """
    size = (Candidate.source_id, Image.width_px, Image.height_px)
    several = (
        select(*size)
        .join(Image, Image.id == Candidate.image_id)
        .group_by(*size)
        .having(func.count(Candidate.image_id.distinct()) > 1)
        .subquery()
    )
    statement = (
        select(Image.id, Image.sha256, Image.suffix)
        .join(Candidate, Candidate.image_id == Image.id)
        .join(
            several,
            (several.c.source_id == Candidate.source_id)
            & (several.c.width_px == Image.width_px)
            & (several.c.height_px == Image.height_px),
        )
        .distinct()
    )
    with database.read() as session:
        rows = session.execute(statement).all()
    pixels = hash_pixels(data, [(row.sha256, row.suffix) for row in rows])
    return {row.id: pixels[row.sha256] for row in rows if row.sha256 in pixels}


def set_aside_equal_pairs(session: Session, pixels: Mapping[int, str]) -> list[EqualPair]:
    """Ask no pair any more whose images have the same pixels, and no task with such a pair; answers that it has stay.

    It wants no judgments: it leaves the queue and every order, and is shown neither as gold nor as a repeat.

    Returns:
        those found anew.
    """
    a, b = aliased(Candidate), aliased(Candidate)
    first, second = aliased(Method), aliased(Method)
    statement = (
        select(Pair.id, Source.key, first.name, second.name, a.image_id, b.image_id)
        .join(Source, Source.id == Pair.source_id)
        .join(a, a.id == Pair.a_id)
        .join(b, b.id == Pair.b_id)
        .join(first, first.id == a.method_id)
        .join(second, second.id == b.method_id)
        .where(Pair.judgments_wanted > 0)
        .order_by(Pair.id)
        .execution_options(yield_per=10_000)
    )
    found = [
        EqualPair(pair_id, key, (name_a, name_b))
        for pair_id, key, name_a, name_b, image_a, image_b in session.execute(statement)
        if same_picture(image_a, image_b, pixels)
    ]
    _set_aside(session, Pair, Lease.pair_id, [pair.pair_id for pair in found if pair.pair_id is not None])
    return found + _set_aside_tasks(session)


def _set_aside_tasks(session: Session) -> list[EqualPair]:
    """Ask no task any more of which a pair was set aside; every two images of a task are a pair."""
    a, b, first, second = aliased(TaskCandidate), aliased(TaskCandidate), aliased(Method), aliased(Method)
    of_a, of_b = aliased(Candidate), aliased(Candidate)
    statement = (
        select(Task.id, Source.key, first.name, second.name)
        .select_from(Pair)
        .join(a, a.candidate_id == Pair.a_id)
        .join(b, (b.candidate_id == Pair.b_id) & (b.task_id == a.task_id))
        .join(Task, Task.id == a.task_id)
        .join(Source, Source.id == Task.source_id)
        .join(of_a, of_a.id == Pair.a_id)
        .join(of_b, of_b.id == Pair.b_id)
        .join(first, first.id == of_a.method_id)
        .join(second, second.id == of_b.method_id)
        .where(Pair.judgments_wanted == 0, Task.judgments_wanted > 0)
        .order_by(Task.id)
    )
    found = {
        task_id: EqualPair(None, key, (name_a, name_b)) for task_id, key, name_a, name_b in session.execute(statement)
    }
    _set_aside(session, Task, Lease.task_id, list(found))
    return list(found.values())


def _set_aside(
    session: Session, table: type[Pair] | type[Task], of_lease: InstrumentedAttribute[int | None], ids: Sequence[int]
) -> None:
    for batch in batches(ids):
        for statement in (
            delete(Lease).where(of_lease.in_(batch)),
            update(table).where(table.id.in_(batch)).values(judgments_wanted=0),
        ):
            session.execute(statement.execution_options(synchronize_session=False))
