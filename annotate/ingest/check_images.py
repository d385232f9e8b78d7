"""Find stored images that are damaged, or that an import of today would store differently, and mend them.

Of the latter there are two kinds, which imports of earlier versions left behind. Those that a browser and a decoder see
differently: people judged them as a browser shows them; metrics and rewards were computed from the bare numbers.
Mending stores the pixels that people saw, so that judgments stay, and removes the values, so that they are computed
anew. And those that hold metadata beside their pixels: mending takes that out, and all that is known of them stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from annotate.ingest.image_files import CheckedFiles, batches, check_files, open_pool
from db.images import Probe, fetch_images, image_path, probe_image, write_image
from db.models import Candidate, Image, MetricValue, Project, Source
from db.session import Database


@dataclass
class CheckReport:
    """Result of a check. Lists hold (SHA-256 of the image, why)."""

    images: int = 0
    affected: list[tuple[str, str]] = field(default_factory=list)
    """Files that are not what everybody sees, with what a reader has to do to them."""
    with_metadata: list[tuple[str, str]] = field(default_factory=list)
    """Files of the right pixels that hold more than them, with what that is."""
    damaged: list[tuple[str, str]] = field(default_factory=list)
    """Files that are missing, cut off or other bytes than were imported; see `annotate.ingest.damage` for what needs
    them."""
    values: int = 0
    """Metric values and rewards of the affected images, or against them."""
    mended: int = 0
    """Of both kinds."""


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
        workers: processes that read; None for one per core, fewer for few files.
        progress: called with (images read, total).
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

    fetch_images(data, [(row.sha256, row.suffix) for row in rows])  # of an object store; nothing to do without one
    with open_pool(workers, len(rows)) as pool:
        files, unfit = check_files(pool, root, hash_of, step)
    for name, sha256 in hash_of.items():
        if name in unfit:
            report.damaged.append((sha256, unfit[name]))
        elif (files[name].original_sha256 or files[name].sha256) != sha256:
            report.damaged.append((sha256, "other bytes than were imported"))
            del files[name]
    found = {name: probe for name, probe in files.items() if probe.conversion is not None}
    for name, probe in found.items():
        of_kind = report.with_metadata if probe.same_pixels else report.affected
        of_kind.append((hash_of[name], str(probe.conversion)))
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
    """Let the row stand for the plain file, or everything for the row that has that file already.

    Its values stay where its pixels do, and are removed elsewhere.
    """
    same = session.scalar(select(Image).where(Image.sha256 == probe.sha256))
    if probe.same_pixels:
        _move_values(session, image, probe.sha256, image.id if same is None else same.id)
    else:
        of_it = or_(MetricValue.image_id == image.id, MetricValue.reference == image.sha256)
        session.execute(delete(MetricValue).where(of_it))
    project = session.scalar(select(Project))
    if project is not None and image.sha256 in (settings := json.dumps(project.settings)):  # a guideline's picture
        project.settings = json.loads(settings.replace(image.sha256, probe.sha256))
    if same is not None:
        for table, column in ((Source, "lq_image_id"), (Source, "hq_image_id"), (Candidate, "image_id")):
            session.execute(update(table).where(getattr(table, column) == image.id).values({column: same.id}))
        session.delete(image)
        return
    image.original_sha256 = image.original_sha256 or image.sha256
    image.conversion = ", ".join(filter(None, (image.conversion, probe.conversion)))
    image.sha256, image.suffix, image.size_bytes = probe.sha256, probe.suffix, probe.size_bytes
    image.width_px, image.height_px = probe.width_px, probe.height_px


def _move_values(session: Session, image: Image, sha256: str, image_id: int) -> None:
    """Let an image's values, and those against it, be of the image `image_id` and against `sha256`.

    Where there is such a value already, which is of the same pixels, that one stays.
    """
    of_it = or_(MetricValue.image_id == image.id, MetricValue.reference == image.sha256)
    rows = session.scalars(select(MetricValue).where(of_it)).all()
    columns = (MetricValue.image_id, MetricValue.metric, MetricValue.version, MetricValue.reference)
    of_other = or_(MetricValue.image_id == image_id, MetricValue.reference == sha256)
    known = {tuple(found) for found in session.execute(select(*columns).where(of_other))}
    for row in rows:
        owner = image_id if row.image_id == image.id else row.image_id
        reference = sha256 if row.reference == image.sha256 else row.reference
        key = (owner, row.metric, row.version, reference)
        if key == (row.image_id, row.metric, row.version, row.reference):
            continue
        if key in known:
            session.delete(row)
        else:
            known.add(key)
            row.image_id, row.reference = owner, reference
    session.flush()
