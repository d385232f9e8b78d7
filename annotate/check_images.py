"""Stored images that a browser and a decoder see differently: what imports of earlier versions left behind.

People judged them as a browser shows them; metrics and rewards were computed from the bare numbers. Mending stores the
pixels that people saw, so that judgments stay, and removes the values, so that they are computed anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from annotate.image_files import CheckedFiles, batches, check_files, open_pool
from db.images import Probe, image_path, probe_image, write_image
from db.models import Candidate, Image, MetricValue, Project, Source
from db.session import Database


@dataclass
class CheckReport:
    """What was found. Lists hold (SHA-256 of the image, why)."""

    images: int = 0
    affected: list[tuple[str, str]] = field(default_factory=list)
    """Files that are not what everybody sees, with what a reader has to do to them."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    values: int = 0
    """Metric values and rewards of the affected images, or against them."""
    mended: int = 0


def check_stored_images(
    database: Database,
    data: Path,
    *,
    mend: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every stored image; mend those that are not plain, each in a transaction of its own.

    Args:
        mend: replace their files by plain ones and remove their values.
        workers: processes that read; None for one a core, fewer for few files.
        progress: told (images read, images in all).
    Raises:
        UserError: the disk is full; what was mended before stays so.
    """
    with database.read() as session:
        rows = session.execute(select(Image.sha256, Image.suffix).order_by(Image.id)).all()
    root = data / "images"
    hash_of = {image_path(data, *row).relative_to(root).as_posix(): row.sha256 for row in rows}
    report, done = CheckReport(images=len(rows)), 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, len(rows))

    with open_pool(workers, len(rows)) as pool:
        files, unfit = check_files(pool, root, hash_of, step)
    report.unreadable = [(hash_of[name], why) for name, why in unfit.items()]
    found = {name: probe for name, probe in files.items() if probe.conversion is not None}
    report.affected = [(hash_of[name], str(probe.conversion)) for name, probe in found.items()]
    with database.read() as session:
        report.values = _count_values(session, [sha256 for sha256, _ in report.affected])
    if mend:
        report.mended = _mend_all(database, data, root, found)
    return report


def _count_values(session: Session, hashes: list[str]) -> int:
    count = 0
    for batch in batches(hashes):
        ids = select(Image.id).where(Image.sha256.in_(batch))
        of_them = or_(MetricValue.image_id.in_(ids), MetricValue.reference.in_(batch))
        count += session.scalar(select(func.count()).select_from(MetricValue).where(of_them)) or 0
    return count


def _mend_all(database: Database, data: Path, root: Path, found: CheckedFiles) -> int:
    for name in found:
        old = root / name
        probe = probe_image(old)  # once more: converted bytes of many images would fill the memory
        write_image(data, probe, old)
        with database.write() as session:
            _mend(session, session.scalars(select(Image).where(Image.sha256 == old.stem)).one(), probe)
        old.unlink(missing_ok=True)
    return len(found)


def _mend(session: Session, image: Image, probe: Probe) -> None:
    """Let the row stand for the plain file, or everything for the row that has that file already; remove its values."""
    of_it = or_(MetricValue.image_id == image.id, MetricValue.reference == image.sha256)
    session.execute(delete(MetricValue).where(of_it))
    project = session.scalar(select(Project))
    if project is not None and image.sha256 in (settings := json.dumps(project.settings)):  # a guideline's picture
        project.settings = json.loads(settings.replace(image.sha256, probe.sha256))
    same = session.scalar(select(Image).where(Image.sha256 == probe.sha256))
    if same is not None:
        for table, column in ((Source, "lq_image_id"), (Source, "hq_image_id"), (Candidate, "image_id")):
            session.execute(update(table).where(getattr(table, column) == image.id).values({column: same.id}))
        session.delete(image)
        return
    image.original_sha256 = image.original_sha256 or image.sha256
    image.conversion = ", ".join(filter(None, (image.conversion, probe.conversion)))
    image.sha256, image.suffix, image.size_bytes = probe.sha256, probe.suffix, probe.size_bytes
    image.width_px, image.height_px = probe.width_px, probe.height_px
