"""Score many images: files into a file, a database's candidates into the database.

Both go in batches and are resumable: what is there already is not scored again, a kill loses one batch at most, and
memory does not grow with the number of images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from db.candidates import CandidateImage, count_lacking, find_missing, store_values
from db.errors import UserError
from db.session import Database
from pixels.read import READING
from reward.data import load_dataset
from reward.model.captions import describe_long_captions
from reward.score.input_photos import InputPhotos
from reward.score.scorer import (
    FoundScorer,
    Scorer,
    check_scorer_captions,
    check_scorer_inputs,
    choose_photo,
    read_batches,
    score_apart,
    stack_inputs,
)
from runs.hold import hold_file
from runs.image_folders import IMAGE_SUFFIXES, list_images, read_caption
from runs.space import explain_full_disk
from runs.store import iterate_lines

MAX_NAMED = 20
Array = npt.NDArray[Any]
Key = tuple[str, str, str | None, str | None]
"""(image, its SHA-256, caption, SHA-256 of the photo that is seen beside it)."""


@dataclass
class ScoreReport:
    """Result of scoring."""

    scored: int = 0
    already: int = 0
    """Images that had a reward of this version before."""
    unreadable: list[str] = field(default_factory=list)
    """Reasons, the first MAX_NAMED; nothing is stored of these."""
    unreadable_count: int = 0
    spread: float | None = None
    """Mean spread over the reward's members, of the images scored now; None where it has one."""
    note: str | None = None
    """Notes: where the prompt replaced captions, and how many were too long."""

    def note_unreadable(self, error: UserError) -> None:
        """Count an image that cannot be read."""
        self.unreadable_count += 1
        if self.unreadable_count <= MAX_NAMED:
            self.unreadable.append(str(error))


@dataclass(frozen=True)
class ImageItem:
    """An image file to score."""

    path: Path
    caption: str | None
    input: Path | None = None
    """The photo that is seen beside it; None where a reward sees none, or there is none."""


def find_images(
    places: Iterable[Path], photo: Literal["lq", "hq"] | None = None, inputs: Path | None = None
) -> list[ImageItem]:
    """The images of files, folders (with all below) and dataset folders, each once for each caption and input photo.

    A caption is the dataset's, or what stands in a .txt file beside the image. Hidden files and folders are passed
    over, and files of other types named in a warning.

    Args:
        photo: which photo is seen beside each image: a dataset names it, and for other images it is in `inputs`.
        inputs: folder of the photos that images were made of, see `InputPhotos.find`.
    Raises:
        UserError: a place is not there, there is no image, a caption is not Unicode text, or `inputs` holds no photos,
            or two of one name.
    """
    items: dict[ImageItem, None] = {}
    photos = InputPhotos(inputs) if photo and inputs else None
    for place in places:
        if (place / "pairs.jsonl").is_file():
            for row in load_dataset(place).rows:
                seen = getattr(row, photo) if photo else None
                items |= {ImageItem(path, row.caption, seen): None for path in (row.image_a, row.image_b)}
        elif place.is_dir():
            for file in list_images(place, recursive=True):
                seen = photos.find(file.relative_to(place)) if photos else None
                items[ImageItem(file, read_caption(file), seen)] = None
        elif place.is_file():
            items[ImageItem(place, read_caption(place), photos.find(Path(place.name)) if photos else None)] = None
        else:
            raise UserError(f"{place} is not there. Give images, a folder of them, a dataset folder or a data folder.")
    if not items:
        raise UserError(f"No image in {', '.join(map(str, places))}: none ends in {', '.join(IMAGE_SUFFIXES)}.")
    return list(items)


def score_files(
    scorer: Scorer,
    items: list[ImageItem],
    out: Path,
    batch_size: int,
    *,
    use_prompt: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreReport:
    """Append a line to `out` for each image that it has none of: image, sha256, caption, metric, version, value.

    Of a reward that sees a photo beside the image also input and input_sha256, of one of several members also spread.
    An image or photo that changed since, another caption or another version of the scorer is a line of its own;
    `reading` is `pixels.read.READING`.

    Args:
        use_prompt: whether the scorer's prompt may stand in where not one image has a caption.
        progress: called with (images checked, total) after each batch.
    Raises:
        UserError: not one image has a caption where captions are wanted, one lacks the photo that the scorer sees,
            `out` is another file or cannot be written, or the memory does not suffice.
    """
    check_item_inputs(scorer, items)
    without = sum(not item.caption for item in items)
    note = check_scorer_captions(scorer, without, len(items), "images", use_prompt=use_prompt)
    report = ScoreReport(note=_add_note(note, scorer, (item.caption for item in items)))
    full = explain_full_disk(out.parent, "run the same command again; it goes on after the whole lines")
    try:
        with full, hold_file(out.with_name(f".{out.name}.lock"), out), open(out, "a", encoding="utf-8") as stream:
            done = read_done(out, scorer.version)
            for batch in read_batches(find_unscored(items, done, report), batch_size, report.note_unreadable):
                wanted, images, seen = zip(*batch, strict=True)
                captions = [one.item.caption for one in wanted]
                values, spreads = score_apart(scorer, images, captions, stack_inputs(seen))
                for one, value, spread in zip(wanted, values.tolist(), spreads.tolist(), strict=True):
                    stream.write(json.dumps(_to_line(scorer, one, value, spread), ensure_ascii=False) + "\n")
                stream.flush()
                _count(report, scorer, spreads)
                if progress:
                    progress(report.scored + report.already + report.unreadable_count, len(items))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another file with --out.") from error
    return report


def _add_note(note: str | None, scorer: Scorer, captions: Iterable[str | None]) -> str | None:
    long = describe_long_captions(scorer.model.config, captions, scorer.model.context_tokens)
    return " ".join(said for said in (note, long) if said) or None


def check_item_inputs(scorer: Scorer | FoundScorer, items: Sequence[ImageItem]) -> None:
    """Check that each image has the photo that is seen beside it.

    Raises:
        UserError: the scorer sees one, and an image has none.
    """
    lacking = [item.path for item in items if item.input is None]
    instead = "Name the folder of the photos that were restored: --inputs DIR, each called as its restored image."
    first = lacking[0] if lacking else None
    check_scorer_inputs(scorer, len(lacking), len(items), "images", instead, first)


@dataclass(frozen=True)
class HashedItem:
    """An image to score, with what its files hold."""

    item: ImageItem
    sha256: str
    input_sha256: str | None

    @property
    def key(self) -> Key:
        """What tells a line from others of its version."""
        return str(self.item.path), self.sha256, self.item.caption, self.input_sha256


def _to_line(scorer: Scorer, one: HashedItem, value: float, spread: float) -> dict[str, Any]:
    line: dict[str, Any] = {"image": str(one.item.path), "sha256": one.sha256, "caption": one.item.caption}
    if one.item.input:
        line |= {"input": str(one.item.input), "input_sha256": one.input_sha256}
    line |= {"metric": scorer.metric, "version": scorer.version, "value": value}
    return line | ({"spread": spread} if scorer.has_spread else {}) | {"reading": READING}


def _count(report: ScoreReport, scorer: Scorer, spreads: Array) -> None:
    """Add a batch to the report."""
    if scorer.has_spread:
        total = (report.spread or 0.0) * report.scored + float(spreads.sum())
        report.spread = total / (report.scored + len(spreads))
    report.scored += len(spreads)


def find_unscored(
    items: Iterable[ImageItem], done: set[Key], report: ScoreReport
) -> Iterator[tuple[HashedItem, Path, Path | None]]:
    """(item, its file, that of its photo) of those that are not `done`; the report counts the others."""
    hashes: dict[Path, str] = {}  # of photos, each of which is seen beside several images
    for item in items:
        try:
            sha256 = _hash(item.path)
            if item.input and item.input not in hashes:
                hashes[item.input] = _hash(item.input)
        except UserError as error:
            report.note_unreadable(error)
            continue
        found = HashedItem(item, sha256, hashes[item.input] if item.input else None)
        if found.key in done:
            report.already += 1
        else:
            yield found, item.path, item.input


def _hash(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error


def read_done(out: Path, version: str) -> set[Key]:
    """The keys of the lines of this version; a last line that a kill left half-written is cut off.

    Lines of another `pixels.read.READING` do not count: some files were other pixels then.

    Raises:
        UserError: the file is there and is none of ours.
    """
    done: set[Key] = set()
    if not out.exists():
        return done
    try:
        for line in iterate_lines(out):
            if line["version"] == version and line.get("reading") == READING:
                done.add((line["image"], line["sha256"], line["caption"], line.get("input_sha256")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{out} is there and is not a file of rewards ({error}); move it away, or name another file with --out."
        ) from error
    return done


def score_candidates(
    scorer: Scorer,
    database: Database,
    data: Path,
    batch_size: int,
    *,
    use_prompt: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreReport:
    """Store the rewards of all candidates that have none of this version, like metric values.

    A reward that sees a photo beside the image is stored with that photo's SHA-256 as its reference, as metrics with a
    reference are; the spread over several members is stored beside the reward.

    Args:
        use_prompt: whether the scorer's prompt may stand in where not one image has a caption.
        progress: called with (images scored, total) after each batch.
    Raises:
        UserError: there is no candidate, not one has a caption where captions are wanted, one lacks the photo that the
            scorer sees, the disk is full, or the memory does not suffice.
    """
    candidates, captioned = count_candidates(scorer, database, data)
    total = without = 0
    captions: set[str | None] = set()
    photo = choose_photo(scorer)
    for image in find_missing(database, data, scorer.metric, scorer.version, photo, fetch=False):
        total, without = total + 1, without + (not image.caption)
        captions.add(image.caption)
    # where those that are left to score have no caption, those that are scored already may have had one
    note = check_scorer_captions(scorer, without, total, "images", use_prompt=use_prompt or captioned > 0)
    report = ScoreReport(already=candidates - total, note=_add_note(note, scorer, captions))
    missing = find_missing(database, data, scorer.metric, scorer.version, photo)
    work = ((image, image.path, image.input) for image in missing)
    for batch in read_batches(work, batch_size, report.note_unreadable):
        candidate_images, images, seen = zip(*batch, strict=True)
        values, spreads = score_apart(scorer, images, [one.caption for one in candidate_images], stack_inputs(seen))
        rows = zip(candidate_images, values.tolist(), strict=True)
        stored = [_to_row(scorer.metric, scorer.version, image, value) for image, value in rows]
        if scorer.has_spread:
            rows = zip(candidate_images, spreads.tolist(), strict=True)
            stored += [_to_row(scorer.spread_metric, scorer.version, image, value) for image, value in rows]
        store_values(database, stored)
        _count(report, scorer, spreads)
        if progress:
            progress(report.scored + report.unreadable_count, total)
    return report


def check_candidates(found: FoundScorer, database: Database, data: Path, *, use_prompt: bool) -> None:
    """Check before the scorer is loaded that there are candidates, and captions and photos where it needs them.

    Raises:
        UserError: there are none.
    """
    candidates, captioned = count_candidates(found, database, data)
    if not captioned:
        check_scorer_captions(found, candidates, candidates, "images", use_prompt=use_prompt)


def count_candidates(scorer: Scorer | FoundScorer, database: Database, data: Path) -> tuple[int, int]:
    """(candidates, those with a caption), each once for each photo that the scorer sees beside it.

    Raises:
        UserError: there is no candidate, or one has no such photo.
    """
    photo = choose_photo(scorer)
    if photo:
        lacking, total, first = count_lacking(database, photo)
        instead = f"Import the photos with {photo}, or score with a reward that sees none."
        check_scorer_inputs(scorer, lacking, total, "restored images", instead, first and f"photo {first!r}")
    candidates = captioned = 0
    # no version is empty: all candidates
    for image in find_missing(database, data, scorer.metric, "", photo, fetch=False):
        candidates, captioned = candidates + 1, captioned + bool(image.caption)
    if not candidates:
        raise UserError(f"{data} has no restored image to score. Import some first: python -m annotate import.")
    return candidates, captioned


def _to_row(metric: str, version: str, image: CandidateImage, value: float) -> dict[str, object]:
    return {
        "image_id": image.image_id,
        "metric": metric,
        "version": version,
        "reference": image.reference,
        "value": value,
        "raw_value": value,
        "failure": None,
    }
