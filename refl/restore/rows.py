"""Select the sources to restore, find their missing candidates, and add both to the database.

Nothing here knows torch. An aligned face is a source of its own; so is each face of a whole photo, named after it
(`photo#0`, from left to right) and in one group with the photo's others, so that a split never parts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db.errors import UserError
from db.images import add_image, fetch_image, fetch_images, find_image, image_path, probe_bytes, write_image
from db.models import Candidate, Image, Method, Project, Source, Split
from db.records import add_candidate, add_method, add_source, draw_split
from db.session import Database
from pixels.read import ImageFault, RgbImage, decode_rgb, read_rgb
from refl.faces.photo_files import encode_png, map_in_threads
from refl.restorers.content import name_changes
from runs.image_folders import name_forms, normalize_name

PAGE_SOURCES = 512
SPLIT_DEFAULTS: dict[str, Any] = {"seed": 0, "val_share": 0.1, "test_share": 0.1}
"""The project's settings where none are stored, as db.project has them."""
MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class Slot:
    """A candidate that is to be made: of this source, from this image, with this seed."""

    source_id: int
    source_key: str
    lq: Path
    seed: int


@dataclass(frozen=True, slots=True)
class RestoredFace:
    """A made candidate, encoded as PNG."""

    slot: Slot
    png: bytes


def find_sources(session: Session, keys: Sequence[str] = (), split: Split | None = None) -> tuple[list[int], int]:
    """(ids of the sources that have an lq image, how many have none), by key, by split, or all.

    Raises:
        UserError: a key is unknown or has no lq image, or there is no source at all.
    """
    if keys:
        found: dict[str, int] = {}
        for start in range(0, len(keys), PAGE_SOURCES):
            named = Source.key.in_(keys[start : start + PAGE_SOURCES])
            found |= {row.key: row.id for row in session.execute(_with_lq().where(named))}
        lacking = [key for key in keys if key not in found]
        if lacking:
            more = f" and {len(lacking) - MAX_NAMED:,} more" if len(lacking) > MAX_NAMED else ""
            raise UserError(
                f"No photo of this name with a low-quality image: {', '.join(map(repr, lacking[:MAX_NAMED]))}{more}."
            )
        return [found[key] for key in dict.fromkeys(keys)], 0
    of_split = [Source.split == split] if split else []
    ids = [row.id for row in session.execute(_with_lq().where(*of_split))]
    without = len(session.scalars(select(Source.id).where(Source.lq_image_id.is_(None), *of_split)).all())
    if not ids:
        where = f"the split {split.value}" if split else "the database"
        raise UserError(f"No photo in {where} has a low-quality image. Name photos or a folder, or import some.")
    return ids, without


def _with_lq() -> Any:
    return select(Source.id, Source.key).where(Source.lq_image_id.is_not(None)).order_by(Source.id)


def add_face(
    session: Session, data: Path, key: str, content: bytes, *, group: str | None = None, name: str | None = None
) -> int:
    """The id of the source of that key with this lq image, added where it is new; accents may be written either way.

    Args:
        content: an image file that was checked.
        group: see `db.records.add_source`; None for the key itself.
        name: what stands in errors.
    Raises:
        UserError: there is a source of that key with another lq image.
    """
    key = session.scalar(select(Source.key).where(Source.key.in_(name_forms(key)))) or normalize_name(key)
    group = group and normalize_name(group)
    probe = probe_bytes(content, name or key)
    stored = session.scalar(select(Image).join(Source, Source.lq_image_id == Image.id).where(Source.key == key))
    if stored is not None and _same_pixels(data, stored, probe.converted or content):
        image = stored
    else:
        image = find_image(session, probe.original_sha256 or probe.sha256) or add_image(session, data, probe, content)
    settings = {**SPLIT_DEFAULTS, **(session.scalar(select(Project.settings).where(Project.id == 1)) or {})}
    split = draw_split(group or key, settings["seed"], settings["val_share"], settings["test_share"])
    # The same face under another name has its split; so has whatever else there is of the group.
    of_one = or_(Source.lq_image_id == image.id, Source.hq_image_id == image.id, Source.group == (group or key))
    shared = session.scalars(select(Source).where(of_one).order_by(Source.id)).first()
    if shared is not None and session.scalar(select(Source.id).where(Source.key == key)) is None:
        split, group = shared.split, group or shared.group
    return add_source(session, key, split, group=group, lq=image).id


def _same_pixels(data: Path, image: Image, content: bytes) -> bool:
    """Whether a stored image looks as these bytes do: another version of a library may encode it otherwise."""
    try:
        stored = read_rgb(fetch_image(data, image.sha256, image.suffix))
    except (OSError, ImageFault):
        return False
    return np.array_equal(stored, decode_rgb(content))


def add_restorer_method(session: Session, name: str, settings: dict[str, Any], run_id: int | None) -> int:
    """The id of the method of that name, added where it is new.

    Raises:
        UserError: there is a method of that name with other settings; another path of the same files is none.
    """
    settings = json.loads(json.dumps(settings))
    method = add_method(session, name, settings, run_id)
    if changes := name_changes(method.settings, settings):
        key = changes[0]
        raise UserError(
            f"There is a method {name!r} already, with {key} {method.settings.get(key)!s:.80} and not "
            f"{settings.get(key)!s:.80}. Give this one a name of its own: --method NAME=…"
        )
    return method.id


def find_missing(
    database: Database,
    data: Path,
    source_ids: Sequence[int],
    method_id: int,
    seeds: Sequence[int],
    *,
    fetch: bool = True,
) -> Iterator[Slot]:
    """The candidates that these sources lack of this method, source by source, in pages: memory does not grow.

    Args:
        fetch: bring the photos of an object store here; False where the candidates are only counted.
    """
    for start in range(0, len(source_ids), PAGE_SOURCES):
        page = source_ids[start : start + PAGE_SOURCES]
        with database.read() as session:
            made = select(Candidate.source_id, Candidate.seed).where(
                Candidate.source_id.in_(page), Candidate.method_id == method_id
            )
            there = {tuple(row) for row in session.execute(made)}
            rows = session.execute(
                select(Source.id, Source.key, Image.sha256, Image.suffix)
                .join(Image, Image.id == Source.lq_image_id)
                .where(Source.id.in_(page))
                .order_by(Source.id)
            ).all()
        lacking = [(row, seed) for row in rows for seed in seeds if (row.id, seed) not in there]
        if fetch:
            fetch_images(data, {(row.sha256, row.suffix) for row, _ in lacking})
        for row, seed in lacking:
            yield Slot(row.id, row.key, image_path(data, row.sha256, row.suffix), seed)


def encode_faces(restored: Iterable[tuple[Slot, RgbImage]]) -> list[RestoredFace]:
    """The faces as PNG, encoded in threads."""
    return list(map_in_threads(lambda item: RestoredFace(item[0], encode_png(item[1])), restored))


def store_candidates(database: Database, data: Path, method_id: int, faces: Sequence[RestoredFace]) -> None:
    """Add these candidates in one transaction, their files before it.

    Raises:
        UserError: the disk is full, or another process restored the same meanwhile to another image.
    """
    probes = [probe_bytes(face.png, face.slot.source_key) for face in faces]
    for _ in map_in_threads(
        lambda item: write_image(data, item[0], item[1].png), list(zip(probes, faces, strict=True))
    ):
        pass
    try:
        with database.write() as session:
            method = session.get_one(Method, method_id)
            for probe, face in zip(probes, faces, strict=True):
                source = session.get_one(Source, face.slot.source_id)
                add_candidate(session, source, method, add_image(session, data, probe, face.png), face.slot.seed)
    except IntegrityError as error:
        raise UserError("Another run restores the same photos at this moment; wait for it, then go on.") from error


def find_candidates(
    database: Database, data: Path, source_ids: Sequence[int], method_id: int, seeds: Sequence[int]
) -> Iterator[tuple[int, str, int, Path]]:
    """(source id, source key, seed, image file) of the candidates that are there."""
    for start in range(0, len(source_ids), PAGE_SOURCES):
        with database.read() as session:
            rows = session.execute(
                select(Source.id, Source.key, Candidate.seed, Image.sha256, Image.suffix)
                .join(Candidate, Candidate.source_id == Source.id)
                .join(Image, Image.id == Candidate.image_id)
                .where(
                    Source.id.in_(source_ids[start : start + PAGE_SOURCES]),
                    Candidate.method_id == method_id,
                    Candidate.seed.in_(seeds),
                )
                .order_by(Source.id, Candidate.seed)
            ).all()
        for row, path in zip(rows, fetch_images(data, [(row.sha256, row.suffix) for row in rows]), strict=True):
            yield row.id, row.key, row.seed, path
