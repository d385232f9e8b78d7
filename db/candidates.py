"""Find the candidates' images that lack a value, and store values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError

from db.errors import UserError
from db.images import image_path
from db.models import Candidate, Image, MetricValue, Source
from db.session import Database

PAGE_IMAGES = 512
REWARD_PREFIX = "reward-"
"""Prefix of the metric of every stored reward; its scorer's name follows."""


@dataclass(frozen=True)
class CandidateImage:
    """An image that is a candidate of one photo or of several."""

    image_id: int
    path: Path
    caption: str | None
    """Of its photo; of the first that was imported where it is a candidate of several."""


def find_missing(database: Database, data: Path, metric: str, version: str) -> Iterator[CandidateImage]:
    """The candidates' images that have no value of this metric and version, in the order of their ids.

    Pages are read as they are needed, each in a session of its own: memory does not grow with the database.
    """
    last_id = 0
    while True:
        with database.read() as session:
            page = _missing(metric, version).where(Image.id > last_id).order_by(Image.id).limit(PAGE_IMAGES)
            images = session.execute(page).all()
            if not images:
                return
            last_id = images[-1].id
            captions: dict[int, str | None] = {}
            of_images = (
                select(Candidate.image_id, Source.caption)
                .join(Source, Source.id == Candidate.source_id)
                .where(Candidate.image_id.in_([row.id for row in images]))
                .order_by(Source.id)
            )
            for image_id, caption in session.execute(of_images):
                captions.setdefault(image_id, caption)
        for row in images:
            yield CandidateImage(row.id, image_path(data, row.sha256, row.suffix), captions[row.id])


def _missing(metric: str, version: str) -> Select[int, str, str]:
    has_value = (
        select(MetricValue.id)
        .where(MetricValue.image_id == Image.id, MetricValue.metric == metric, MetricValue.version == version)
        .exists()
    )
    return select(Image.id, Image.sha256, Image.suffix).where(Image.id.in_(select(Candidate.image_id)), ~has_value)


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
