"""Folders and manifests to images, sources, methods and candidates.

Every file is read and decoded before anything is written, then the new image files are put in place, then all rows are
added in one transaction: an import is there whole or not at all, also when it is killed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from annotate.image_files import (
    CheckedFiles,
    NewImages,
    batches,
    check_files,
    find_images,
    open_pool,
    remove_unused,
    select_new,
    store_file,
    store_files,
    stored_id,
)
from annotate.layout import NO_LQ, Plan, PlannedSource, read_folder
from annotate.manifest import TABLE_SUFFIXES, read_manifest
from annotate.project import ProjectSettings, load_settings
from db.errors import UserError
from db.images import Probe
from db.models import Candidate, Image, Method, Source
from db.records import add_candidate, add_method, add_source, draw_split
from db.session import Database

MAX_NAMED = 10
MAX_LISTED = 1_000

Named = list[tuple[str, str]]


@dataclass
class ImportReport:
    """What an import did. Lists hold (file, why)."""

    sources_added: int = 0
    sources_existing: int = 0
    methods_added: int = 0
    candidates_added: int = 0
    candidates_existing: int = 0
    images_added: int = 0
    bytes_added: int = 0
    converted: Named = field(default_factory=list)
    """Added as something else than the file's own bytes (see db.images)."""
    refused: Named = field(default_factory=list)
    ignored: Named = field(default_factory=list)
    """Entries that are no part of the layout."""

    def to_result(self) -> dict[str, Any]:
        """As JSON values: the counts, and of each list its length and its first MAX_LISTED."""
        values: dict[str, Any] = {}
        for name, value in asdict(self).items():
            values[name] = value[:MAX_LISTED] if isinstance(value, list) else value
            if isinstance(value, list):
                values[f"{name}_count"] = len(value)
        return values


def describe_counts(values: dict[str, Any]) -> str:
    """The counts of an import's JSON values in one line: '85 sources added, 14 methods added, …'."""
    counts = []
    for name, value in values.items():
        if name == "bytes_added":
            counts.append(f"{value / 2**20:,.1f} MiB added")
        elif isinstance(value, int) and (value or name.endswith("added")):
            counts.append(f"{value:,} {name.removesuffix('_count').replace('_', ' ')}")
    return ", ".join(counts)


class ImportRefused(UserError):
    """Some files are unfit, so nothing was imported."""

    def __init__(self, refused: Named) -> None:
        self.refused = refused
        if len(refused) == 1:
            name, why = refused[0]
            super().__init__(
                f"{shown(name)}: {why}. Nothing was imported; mend or remove it, or leave it out with --skip-bad."
            )
            return
        lines = [f"{len(refused):,} files are unfit and nothing was imported; --skip-bad leaves them out:"]
        lines += [f"  {shown(name)}: {why}" for name, why in refused[:MAX_NAMED]]
        lines += [f"  and {len(refused) - MAX_NAMED:,} more"] if len(refused) > MAX_NAMED else []
        super().__init__("\n".join(lines))


def shown(name: str) -> str:
    """A file name as a terminal can take it: control characters and undecodable bytes escaped."""
    return name if name.isprintable() else ascii(name)


def import_folder(
    database: Database,
    data: Path,
    path: Path,
    *,
    on_bad: Literal["refuse", "skip"] = "refuse",
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> ImportReport:
    """Import a folder (see `annotate.layout`) or a manifest (see `annotate.manifest`), wholly or not at all.

    Args:
        on_bad: what a file that cannot be used does: refuse the import, or stay out of it. Without its lq image a
            source stays out with all of its images.
        progress: told (steps done, steps in all); a file is one step when it is checked and one when it is stored.
        workers: processes that check and store; None for one a core, fewer for few files.
    Raises:
        ImportRefused: unfit files, with on_bad 'refuse'.
        UserError: no such folder or manifest, or a source or candidate is stored with other content.
    """
    plan = read_manifest(path) if path.suffix.lower() in TABLE_SUFFIXES else read_folder(path)
    with database.read() as session:
        _drop_without_lq(session, plan)
    names = list({name: None for source in plan.sources.values() for name in source.files()})
    step = _count_steps(progress, 2 * len(names))
    new: NewImages = {}
    try:
        with open_pool(workers, len(names)) as pool:
            files, unfit = check_files(pool, plan.root, names, step)
            _drop_unfit(plan, files, unfit)
            if plan.refused and on_bad == "refuse":
                raise ImportRefused(plan.refused)
            new = select_new(database, data, files)
            step(len(names) - len(new))
            store_files(pool, data, plan.root, new, step)
        with database.write() as session:
            return _add_rows(session, data, plan, files, new)
    except BaseException as error:
        if new:
            remove_unused(database, data, new)
        if isinstance(error, IntegrityError):
            raise UserError("Another import added some of the same photos meanwhile; import again.") from error
        raise


def _count_steps(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return step


def _drop_without_lq(session: Session, plan: Plan) -> None:
    """Refuse the sources that come without an lq image and are not stored with one."""
    lacking = [key for key, source in plan.sources.items() if source.lq is None]
    stored: set[str] = set()
    for batch in batches(lacking):
        stored.update(session.scalars(select(Source.key).where(Source.key.in_(batch), Source.lq_image_id.is_not(None))))
    for key in lacking:
        if key not in stored:
            plan.refused += [(name, NO_LQ) for name in plan.sources.pop(key).files()] or [(key, NO_LQ)]


def _drop_unfit(plan: Plan, files: CheckedFiles, unfit: dict[str, str]) -> None:
    """Take what is unfit out of the plan, and with an lq image its whole source."""
    if not unfit:
        return
    for key, source in list(plan.sources.items()):
        if source.lq in unfit:
            del plan.sources[key]
            others = sum(1 for name in source.files() if name not in unfit)
            if others:
                unfit[source.lq] += f" (its {others} other images are left out with it)"
            continue
        source.hq = None if source.hq in unfit else source.hq
        source.candidates = {slot: name for slot, name in source.candidates.items() if name not in unfit}
    plan.refused += unfit.items()
    wanted = {name for source in plan.sources.values() for name in source.files()}
    for name in files.keys() - wanted:
        del files[name]


def _add_rows(session: Session, data: Path, plan: Plan, files: CheckedFiles, new: NewImages) -> ImportReport:
    """Add all rows of the plan that are not there yet."""
    report = ImportReport(refused=plan.refused, ignored=plan.ignored)
    settings = load_settings(session)
    n_methods = session.scalar(select(func.count()).select_from(Method)) or 0
    methods: dict[str, int] = {}
    for batch in batches(plan.sources.values()):
        in_batch = {name: files[name] for source in batch for name in source.files()}
        images = _add_images(session, data, plan.root, in_batch, new, report)
        source_ids = _add_sources(session, batch, images, settings, report)
        for source in batch:
            for name, _ in source.candidates:
                if name not in methods:
                    methods[name] = add_method(session, name).id
        _add_candidates(session, batch, source_ids, images, methods, report)
    report.methods_added = (session.scalar(select(func.count()).select_from(Method)) or 0) - n_methods
    return report


def _add_images(
    session: Session, data: Path, root: Path, files: CheckedFiles, new: NewImages, report: ImportReport
) -> dict[str, int]:
    """File to image id."""
    stored = find_images(session, list(files.values()))
    missing: dict[str, Probe] = {}
    for name, probe in files.items():
        if stored_id(stored, probe) is None:
            if probe.conversion is not None:
                report.converted.append((name, probe.conversion))
            if probe.sha256 in missing:
                continue
            missing[probe.sha256] = probe
            if probe.sha256 not in new:
                # Its file was there without a row: of a killed import, or of one that may have failed and removed it.
                store_file(data, root / name, probe)
    rows = [
        {
            "sha256": probe.sha256,
            "suffix": probe.suffix,
            "width_px": probe.width_px,
            "height_px": probe.height_px,
            "size_bytes": probe.size_bytes,
            "original_sha256": probe.original_sha256,
            "conversion": probe.conversion,
        }
        for probe in missing.values()
    ]
    if rows:
        ids = session.scalars(insert(Image).returning(Image.id, sort_by_parameter_order=True), rows)
        stored.update(zip(missing, ids, strict=True))
    report.images_added += len(rows)
    report.bytes_added += sum(probe.size_bytes for probe in missing.values())
    found = {name: stored_id(stored, probe) for name, probe in files.items()}
    return {name: image_id for name, image_id in found.items() if image_id is not None}


def _add_sources(
    session: Session,
    sources: Sequence[PlannedSource],
    images: dict[str, int],
    settings: ProjectSettings,
    report: ImportReport,
) -> dict[str, int]:
    """Source key to id."""
    columns = (Source.key, Source.id, Source.group, Source.caption, Source.lq_image_id, Source.hq_image_id)
    stored = {
        row.key: row
        for row in session.execute(select(*columns).where(Source.key.in_([source.key for source in sources])))
    }
    ids = {key: row.id for key, row in stored.items()}
    rows = []
    for source in sources:
        group = source.group or source.key
        split = draw_split(group, settings.seed, settings.val_share, settings.test_share)
        lq_id, hq_id = images.get(source.lq or ""), images.get(source.hq or "")
        row = stored.get(source.key)
        if row is None:
            rows.append(
                {
                    "key": source.key,
                    "group": group,
                    "split": split,
                    "caption": source.caption,
                    "lq_image_id": lq_id,
                    "hq_image_id": hq_id,
                }
            )
            continue
        given = (source.group, source.caption, lq_id, hq_id)
        there = (row.group, row.caption, row.lq_image_id, row.hq_image_id)
        if any(value is not None and value != known for value, known in zip(given, there, strict=True)):
            lq, hq = (session.get(Image, image_id) if image_id else None for image_id in (lq_id, hq_id))
            add_source(session, source.key, split, group=source.group, caption=source.caption, lq=lq, hq=hq)
    if rows:
        new_ids = session.scalars(insert(Source).returning(Source.id, sort_by_parameter_order=True), rows)
        ids.update((row["key"], new_id) for row, new_id in zip(rows, new_ids, strict=True))
    report.sources_added += len(rows)
    report.sources_existing += len(stored)
    return ids


def _add_candidates(
    session: Session,
    sources: Sequence[PlannedSource],
    source_ids: dict[str, int],
    images: dict[str, int],
    methods: dict[str, int],
    report: ImportReport,
) -> None:
    columns = (Candidate.source_id, Candidate.method_id, Candidate.seed, Candidate.image_id)
    statement = select(*columns).where(Candidate.source_id.in_(list(source_ids.values())))
    stored = {(row.source_id, row.method_id, row.seed): row.image_id for row in session.execute(statement)}
    rows = []
    for source in sources:
        for (method, seed), name in source.candidates.items():
            slot = (source_ids[source.key], methods[method], seed)
            if slot not in stored:
                rows.append(
                    dict(zip(("source_id", "method_id", "seed", "image_id"), (*slot, images[name]), strict=True))
                )
                continue
            report.candidates_existing += 1
            if stored[slot] != images[name]:
                # Raises, with the reason.
                add_candidate(
                    session,
                    session.get_one(Source, slot[0]),
                    session.get_one(Method, slot[1]),
                    session.get_one(Image, images[name]),
                    seed,
                )
    if rows:
        session.execute(insert(Candidate), rows)
    report.candidates_added += len(rows)
