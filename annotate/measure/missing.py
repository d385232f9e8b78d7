"""Find the metric values that are not measured yet, and make batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session, aliased

from annotate.ingest.image_files import batches
from annotate.measure.worker import (
    ImageFile,
    ImageJob,
    Wanted,
)
from db.models import Candidate, Image, MetricValue, Source
from db.session import Database
from metrics.lists import Column

PAGE_IMAGES = 512
CPU_BATCH, GPU_BATCH = 8, 32


def make_batches(jobs: Iterable[ImageJob], size: int) -> Iterator[list[ImageJob]]:
    """The jobs in lists of `size`."""
    return batches(jobs, size)


def find_missing(database: Database, wanted: Sequence[Column]) -> Iterator[ImageJob]:
    """Find missing values, image by image in the order of their ids, those of a page sorted by size.

    Pages are read as they are needed, each in a session of its own: memory does not grow with the database.
    """
    last_id = 0
    while True:
        with database.read() as session:
            page = session.execute(
                select(Image.id, Image.sha256, Image.suffix)
                .where(Image.id > last_id, Image.id.in_(select(Candidate.image_id)))
                .order_by(Image.id)
                .limit(PAGE_IMAGES)
            ).all()
            if not page:
                return
            last_id = page[-1].id
            jobs = _find_missing_of(session, wanted, {row.id: ImageFile(row.sha256, row.suffix) for row in page})
        yield from jobs


def _find_missing_of(session: Session, wanted: Sequence[Column], files: dict[int, ImageFile]) -> list[ImageJob]:
    ids = list(files)
    versions = [(column.metric, column.version) for column in wanted]
    of_list = tuple_(MetricValue.metric, MetricValue.version).in_(versions)
    statement = select(MetricValue.image_id, MetricValue.metric, MetricValue.version, MetricValue.reference)
    rows = session.execute(statement.where(MetricValue.image_id.in_(ids), of_list))
    stored = {(image_id, metric, version, reference) for image_id, metric, version, reference in rows}
    references = _find_references(session, ids)
    sizes = {
        row.id: (row.width_px, row.height_px)
        for row in session.execute(select(Image.id, Image.width_px, Image.height_px).where(Image.id.in_(ids)))
    }
    jobs: list[ImageJob] = []
    for image_id in sorted(ids, key=lambda image_id: (sizes[image_id], image_id)):
        missing = tuple(
            Wanted(column, reference)
            for column in wanted
            for reference in (references[column.reference].get(image_id, ()) if column.reference else (None,))
            if (image_id, column.metric, column.version, reference.sha256 if reference else "") not in stored
        )
        if missing:
            jobs.append(ImageJob(image_id, files[image_id], missing))
    return jobs


def _find_references(session: Session, image_ids: list[int]) -> dict[str, dict[int, list[ImageFile]]]:
    """'lq' and 'hq' to image id to the reference images of the sources that the image is a candidate of."""
    found: dict[str, dict[int, list[ImageFile]]] = {"lq": {}, "hq": {}}
    for kind, of_source in (("lq", Source.lq_image_id), ("hq", Source.hq_image_id)):
        reference = aliased(Image)
        rows = session.execute(
            select(Candidate.image_id, reference.sha256, reference.suffix)
            .join(Source, Source.id == Candidate.source_id)
            .join(reference, reference.id == of_source)
            .where(Candidate.image_id.in_(image_ids))
            .distinct()
            .order_by(Candidate.image_id, reference.sha256)
        )
        for image_id, sha256, suffix in rows:
            found[kind].setdefault(image_id, []).append(ImageFile(sha256, suffix))
    return found
