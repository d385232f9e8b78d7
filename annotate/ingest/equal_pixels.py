"""Find candidates of one source that show the same picture: they make no pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session, aliased

from annotate.ingest.image_files import batches
from annotate.judging.pairs import same_picture
from db.models import Candidate, Image, Lease, Method, Pair, Source
from db.pixel_hashes import hash_pixels
from db.session import Database


@dataclass(frozen=True)
class EqualPair:
    """A pair whose two images have the same pixels."""

    pair_id: int
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
    """Ask no pair any more whose images have the same pixels; answers that it has stay. Returns those found anew.

    Such a pair wants no judgments: it leaves the queue and every order, and is shown neither as gold nor as a repeat.
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
    for batch in batches(pair.pair_id for pair in found):
        session.execute(delete(Lease).where(Lease.pair_id.in_(batch)).execution_options(synchronize_session=False))
        session.execute(
            update(Pair)
            .where(Pair.id.in_(batch))
            .values(judgments_wanted=0)
            .execution_options(synchronize_session=False)
        )
    return found
