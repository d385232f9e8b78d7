"""Store what a folder or manifest lists as images, sources, methods and candidates.

Every file is read and decoded before anything is written, then the new image files are put in place, then all rows are
added in one transaction: an import is there whole or not at all, also when it is killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from annotate.ingest.groups import input_images, join_groups
from annotate.ingest.image_files import (
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
from annotate.ingest.layout import Plan, PlannedSource, read_folder
from annotate.ingest.manifest import add_manifest, find_manifest, read_manifest
from dataset.tables import TABLE_SUFFIXES
from db.errors import UserError
from db.images import Probe, sweep_unfinished
from db.models import Candidate, Image, Method, Source
from db.pixel_hashes import hash_pixels
from db.project import ProjectSettings, load_settings
from db.records import add_candidate, add_method, add_source, draw_split, is_in_group
from db.session import Database
from runs.image_folders import describe_kind, is_shown, name_forms

MAX_NAMED = 10
MAX_LISTED = 1_000

Named = list[tuple[str, str]]


@dataclass
class ImportReport:
    """Result of an import. Lists hold (file, why)."""

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
    """Files that are not part of the layout."""
    differ_in_aspect: Named = field(default_factory=list)
    """Sources whose images differ in aspect, with the sizes: (source, sizes)."""
    share_a_picture: Named = field(default_factory=list)
    """Sources in the group and split of others, since they share a picture: (source, which)."""
    advice: list[str] = field(default_factory=list)
    """Of a refused import: what would bring its files together."""

    def to_result(self) -> dict[str, Any]:
        """As JSON values: the counts, and of each list its length and its first MAX_LISTED."""
        values: dict[str, Any] = {"ignored_kinds": count_ignored(self.ignored), "advice": self.advice}
        for name, value in asdict(self).items():
            if name in values:
                continue
            values[name] = value[:MAX_LISTED] if isinstance(value, list) else value
            if isinstance(value, list):
                values[f"{name}_count"] = len(value)
        return values


def count_ignored(ignored: Named) -> list[tuple[str, str, int]]:
    """(kind, why, how many) of the ignored files, the most frequent first: ('.txt', 'not an image', 12)."""
    counts = Counter((describe_kind(name), why) for name, why in ignored)
    return [(kind, why, count) for (kind, why), count in counts.most_common()]


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

    def __init__(self, refused: Named, advice: Sequence[str] = ()) -> None:
        self.refused, self.advice = refused, list(advice)
        if len(refused) == 1:
            name, why = refused[0]
            text = f"{shown(name)}: {why}. Nothing was imported; mend or remove it, or leave it out with --skip-bad."
            super().__init__(" ".join([text, *advice]))
            return
        lines = [f"{len(refused):,} files are unfit and nothing was imported; --skip-bad leaves them out:"]
        lines += [f"  {shown(name)}: {why}" for name, why in refused[:MAX_NAMED]]
        lines += [f"  and {len(refused) - MAX_NAMED:,} more"] if len(refused) > MAX_NAMED else []
        super().__init__("\n".join([*lines, *advice]))


def shown(name: str) -> str:
    """A file name as a terminal can take it: control characters and undecodable bytes escaped."""
    return name if is_shown(name) else ascii(name)


def import_folder(
    database: Database,
    data: Path,
    path: Path,
    *,
    on_bad: Literal["refuse", "skip"] = "refuse",
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    strip_suffixes: Sequence[str] = (),
    ignore_case: bool = False,
) -> ImportReport:
    """Import a folder (see `annotate.ingest.layout`) or a manifest (see `annotate.ingest.manifest`), wholly or not at
    all.

    Args:
        on_bad: what a file that cannot be used does: refuse the import, or stay out of it. Without its lq image a
            source stays out with all of its images.
        progress: called with (done, total) in steps; a file is one step when it is checked and one when it is stored.
        workers: processes that check and store; None for one per core, fewer for few files.
        strip_suffixes, ignore_case: how names of outputs are read; see `annotate.ingest.layout.read_folder`.
    Raises:
        ImportRefused: unfit files, with on_bad 'refuse'.
        UserError: no such folder or manifest, or a source or candidate is stored with other content.
    """
    plan = _read_plan(path, strip_suffixes, ignore_case=ignore_case)
    sweep_unfinished(data)
    with database.read() as session:
        _use_stored_names(session, plan)
        advice = _drop_without_lq(session, plan)
    names = list({name: None for source in plan.sources.values() for name in source.files()})
    step = _count_steps(progress, 2 * len(names))
    new: NewImages = {}
    try:
        with open_pool(workers, len(names)) as pool:
            files, unfit = check_files(pool, plan.root, names, step)
            _drop_unfit(plan, files, unfit)
            if plan.refused and on_bad == "refuse":
                raise ImportRefused(plan.refused, advice)
            new = select_new(database, data, files)
            step(len(names) - len(new))
            store_files(pool, data, plan.root, new, step)
        pixels = _hash_inputs(database, data, plan, files)
        with database.write() as session:
            return _add_rows(session, data, plan, files, new, pixels)
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


def _read_plan(path: Path, strip_suffixes: Sequence[str], *, ignore_case: bool) -> Plan:
    if path.suffix.lower() in TABLE_SUFFIXES and not path.is_dir():
        return read_manifest(path)
    plan = read_folder(path, strip_suffixes=strip_suffixes, ignore_case=ignore_case)
    manifest = find_manifest(path)
    if manifest is not None:
        add_manifest(plan, manifest)
    return plan


def _use_stored_names(session: Session, plan: Plan) -> None:
    """Call sources and methods as they are stored, where that was before names were normalised."""
    methods = {name for source in plan.sources.values() for name, _ in source.candidates}
    keys = _find_stored_forms(session, Source.key, plan.sources)
    names = _find_stored_forms(session, Method.name, methods)
    for key, stored in keys.items():
        source = plan.sources.pop(key)
        source.key = stored
        plan.sources[stored] = source
    if names:
        for source in plan.sources.values():
            source.candidates = {(names.get(n, n), seed): file for (n, seed), file in source.candidates.items()}


def _find_stored_forms(session: Session, column: Any, names: Iterable[str]) -> dict[str, str]:
    """Name to the other form in which it is stored, of those that are."""
    other = {form: name for name in names if not name.isascii() for form in name_forms(name)[1:]}
    return {
        other[stored]: stored
        for batch in batches(other)
        for stored in session.scalars(select(column).where(column.in_(batch)))
    }


def _hash_inputs(database: Database, data: Path, plan: Plan, files: CheckedFiles) -> dict[str, str]:
    """SHA-256 to the hash of the pixels, of the lq and hq images that are stored and of those to be added."""
    with database.read() as session:
        inputs = input_images(session)
    for source in plan.sources.values():
        probes = (files[name] for name in (source.lq, source.hq) if name is not None)
        inputs += [(probe.sha256, probe.suffix) for probe in probes]
    return hash_pixels(data, inputs)


def _drop_without_lq(session: Session, plan: Plan) -> list[str]:
    """Refuse the sources that come without an lq image and are not stored with one; returns what would help."""
    lacking = [key for key, source in plan.sources.items() if source.lq is None]
    stored: set[str] = set()
    for batch in batches(lacking):
        stored.update(session.scalars(select(Source.key).where(Source.key.in_(batch), Source.lq_image_id.is_not(None))))
    unmatched: list[str] = []
    for key in lacking:
        if key not in stored:
            names = list(plan.sources.pop(key).files())
            plan.refused += [(name, plan.matching.explain(key)) for name in names or [key]]
            unmatched += names
    return plan.matching.advise(unmatched)


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


def _add_rows(
    session: Session, data: Path, plan: Plan, files: CheckedFiles, new: NewImages, pixels: dict[str, str]
) -> ImportReport:
    """Add all rows of the plan that are not there yet."""
    report = ImportReport(refused=plan.refused, ignored=plan.ignored)
    settings = load_settings(session)
    n_methods = session.scalar(select(func.count()).select_from(Method)) or 0
    methods: dict[str, int] = {}
    last_source = session.scalar(select(func.max(Source.id))) or 0
    touched: set[int] = set()
    for batch in batches(plan.sources.values()):
        in_batch = {name: files[name] for source in batch for name in source.files()}
        images = _add_images(session, data, plan.root, in_batch, new, report)
        source_ids = _add_sources(session, batch, images, settings, report, touched)
        for source in batch:
            for name, _ in source.candidates:
                if name not in methods:
                    methods[name] = add_method(session, name).id
        with_candidates = _add_candidates(session, batch, source_ids, images, methods, report)
        changed = with_candidates | touched.intersection(source_ids.values())
        report.differ_in_aspect += _find_aspects(session, sorted(changed))
    new_sources = {source_id for source_id in touched if source_id > last_source}
    joined = join_groups(session, settings, pixels, new=new_sources, touched=touched)
    report.share_a_picture = [(source.key, source.describe()) for source in joined]
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
        session.connection().execute(insert(Image), rows)
        stored.update(_read_ids(session, Image.sha256, Image.id, missing))
    report.images_added += len(rows)
    report.bytes_added += sum(probe.size_bytes for probe in missing.values())
    found = {name: stored_id(stored, probe) for name, probe in files.items()}
    return {name: image_id for name, image_id in found.items() if image_id is not None}


def _read_ids(session: Session, column: Any, number: Any, names: Iterable[str]) -> dict[str, int]:
    """Ids by name of rows just added. Asked for afterwards, since SQLite gives them with an insert one row at a time,
    and nobody else can write meanwhile."""
    rows = session.connection()
    return {
        name: row_id
        for batch in batches(names)
        for name, row_id in rows.execute(select(column, number).where(column.in_(batch)))
    }


def _add_sources(
    session: Session,
    sources: Sequence[PlannedSource],
    images: dict[str, int],
    settings: ProjectSettings,
    report: ImportReport,
    touched: set[int],
) -> dict[str, int]:
    """Source key to id; the ids of those that are new or changed are added to `touched`."""
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
        differs = any(value is not None and value != known for value, known in zip(given[1:], there[1:], strict=True))
        if differs or (source.group is not None and not is_in_group(source.group, row.group)):
            lq, hq = (session.get(Image, image_id) if image_id else None for image_id in (lq_id, hq_id))
            add_source(session, source.key, split, group=source.group, caption=source.caption, lq=lq, hq=hq)
            touched.add(row.id)
    if rows:
        session.execute(insert(Source), rows)
        new_ids = _read_ids(session, Source.key, Source.id, [str(row["key"]) for row in rows])
        ids |= new_ids
        touched.update(new_ids.values())
    report.sources_added += len(rows)
    report.sources_existing += len(stored)
    return ids


def _find_aspects(session: Session, source_ids: Sequence[int]) -> Named:
    """Those of the sources whose images differ in aspect, with the size of each: scaled to one, one would be cut."""
    sizes: dict[str, dict[str, tuple[int, int]]] = {}
    pixels = (Image.width_px, Image.height_px)
    for name, column in (("lq", Source.lq_image_id), ("hq", Source.hq_image_id)):
        statement = select(Source.key, *pixels).join(Image, Image.id == column).where(Source.id.in_(source_ids))
        for key, width, height in session.execute(statement):
            sizes.setdefault(key, {})[name] = (width, height)
    of_methods = (
        select(Source.key, Method.name, Candidate.seed, *pixels)
        .join(Candidate, Candidate.source_id == Source.id)
        .join(Method, Method.id == Candidate.method_id)
        .join(Image, Image.id == Candidate.image_id)
        .where(Source.id.in_(source_ids))
        .order_by(Candidate.id)
    )
    for key, method, seed, width, height in session.execute(of_methods):
        sizes.setdefault(key, {})[f"{method}, seed {seed}" if seed else method] = (width, height)
    return [
        (key, ", ".join(f"{name} {width} x {height}" for name, (width, height) in of_source.items()))
        for key, of_source in sorted(sizes.items())
        if any(differ_in_aspect(a, b) for a, b in combinations(set(of_source.values()), 2))
    ]


def differ_in_aspect(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether one of two (width, height) scaled to the other's width or height misses it by a pixel of the smaller.

    Less is the rounding of a restorer that enlarges.
    """
    (width_1, height_1), (width_2, height_2) = first, second
    off = abs(width_1 * height_2 - width_2 * height_1)
    return off >= max(width_1, width_2) or off >= max(height_1, height_2)


def _add_candidates(
    session: Session,
    sources: Sequence[PlannedSource],
    source_ids: dict[str, int],
    images: dict[str, int],
    methods: dict[str, int],
    report: ImportReport,
) -> set[int]:
    """The ids of the sources that got new candidates."""
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
        session.connection().execute(insert(Candidate), rows)
    report.candidates_added += len(rows)
    return {row["source_id"] for row in rows}
