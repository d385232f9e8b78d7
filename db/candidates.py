"""Find the candidates' images that lack a value, and store values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Select, func, literal, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import aliased

from db.errors import UserError
from db.images import fetch_images, image_path
from db.models import Candidate, Image, MetricValue, Source
from db.session import Database

PAGE_IMAGES = 512
REWARD_PREFIX = "reward-"
"""Prefix of the metric of every stored reward; its scorer's name follows."""
SPREAD_PREFIX = "spread-"
"""Prefix of the metric of how far a reward's members are apart, stored beside the reward; no opinion of its own."""

Photo = Literal["lq", "hq"]


@dataclass(frozen=True)
class CandidateImage:
    """An image that is a candidate of one photo or of several."""

    image_id: int
    path: Path
    caption: str | None
    """Of its photo; of the first that was imported where it is a candidate of several."""
    input: Path | None = None
    """The photo that is seen beside it."""
    reference: str = ""
    """The SHA-256 of `input`; empty where there is none."""


def find_missing(
    database: Database, data: Path, metric: str, version: str, photo: Photo | None = None, *, fetch: bool = True
) -> Iterator[CandidateImage]:
    """The candidates' images that have no value of this metric and version, in the order of their ids.

    Pages are read as they are needed, each in a session of its own: memory does not grow with the database.

    Args:
        photo: what is seen beside each image, so that one comes once for each different one that it has, and a value
            counts for the one that it was computed with; images without are passed over, see `count_lacking`.
        fetch: bring the files of an object store here, page by page; False where they are only counted.
    """
    last = (0, -1)
    while True:
        with database.read() as session:
            page = _missing(metric, version, photo, last).limit(PAGE_IMAGES)
            images = session.execute(page).all()
            if not images:
                return
            last = (images[-1].id, images[-1].seen_id)
            captions: dict[tuple[int, int], str | None] = {}
            of_images = (
                select(Candidate.image_id, _seen_of(photo), Source.caption)
                .join(Source, Source.id == Candidate.source_id)
                .where(Candidate.image_id.in_({row.id for row in images}))
                .order_by(Source.id)
            )
            for image_id, seen_id, caption in session.execute(of_images):
                captions.setdefault((image_id, seen_id), caption)
        if fetch:
            fetch_images(data, {(row.sha256, row.suffix) for row in images})
            fetch_images(data, {(row.seen_sha256, row.seen_suffix) for row in images} if photo else ())
        for row in images:
            seen = image_path(data, row.seen_sha256, row.seen_suffix) if photo else None
            path = image_path(data, row.sha256, row.suffix)
            yield CandidateImage(row.id, path, captions[row.id, row.seen_id], seen, row.seen_sha256)


def count_lacking(database: Database, photo: Photo) -> tuple[int, int, str | None]:
    """(candidates whose photo has none of this kind, all candidates, the first such photo's name)."""
    lacks = _seen_of(photo).is_(None)
    statement = select(func.count()).select_from(Candidate).join(Source, Source.id == Candidate.source_id)
    first = select(Source.key).join(Candidate, Candidate.source_id == Source.id).where(lacks).order_by(Source.id)
    with database.read() as session:
        lacking, total = (session.scalar(found) or 0 for found in (statement.where(lacks), statement))
        return lacking, total, session.scalar(first.limit(1))


def _seen_of(photo: Photo | None) -> Any:
    """The id of the image that is seen beside a source's candidates; 0 for none."""
    if photo is None:
        return literal(0)
    return Source.lq_image_id if photo == "lq" else Source.hq_image_id


def _missing(metric: str, version: str, photo: Photo | None, after: tuple[int, int]) -> Select[Any]:
    """(image and what is seen beside it) that lack a value, after those of these two ids."""
    seen, seen_id = aliased(Image), _seen_of(photo)
    reference = seen.sha256 if photo else literal("")
    has_value = (
        select(MetricValue.id)
        .where(
            MetricValue.image_id == Image.id,
            MetricValue.metric == metric,
            MetricValue.version == version,
            MetricValue.reference == reference,
        )
        .exists()
    )
    statement = select(
        Image.id,
        Image.sha256,
        Image.suffix,
        seen_id.label("seen_id"),
        reference.label("seen_sha256"),
        (seen.suffix if photo else literal("")).label("seen_suffix"),
    ).where(~has_value)
    if photo is None:
        return statement.where(Image.id.in_(select(Candidate.image_id)), Image.id > after[0]).order_by(Image.id)
    return (
        statement.join(Candidate, Candidate.image_id == Image.id)
        .join(Source, Source.id == Candidate.source_id)
        .join(seen, seen.id == seen_id)
        .where(tuple_(Image.id, seen.id) > after)
        .distinct()
        .order_by(Image.id, seen_id)
    )


def store_values(database: Database, rows: list[dict[str, Any]]) -> None:
    """Add the rows in one transaction; those that another process added meanwhile stay as they are.

    Raises:
        UserError: the disk is full; nothing of these rows is stored then.
    """
    if not rows:
        return
    insert = postgresql.insert if database.engine.dialect.name == "postgresql" else sqlite.insert
    try:
        with database.write() as session:
            session.execute(insert(MetricValue).on_conflict_do_nothing(), rows)
    except OperationalError as error:
        if "full" not in str(error.orig) and "No space" not in str(error.orig):
            raise
        raise UserError(
            "The disk is full. What was stored before stays; free some space and run the same command again."
        ) from error
