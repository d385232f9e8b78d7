"""Score many images: files into a file, a database's candidates into the database.

Both go in batches and are resumable: what is there already is not scored again, a kill loses one batch at most, and
memory does not grow with the number of images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from db.candidates import CandidateImage, find_missing, store_values
from db.errors import UserError
from db.session import Database
from pixels.read import READING
from reward.data import load_dataset
from reward.model.captions import describe_long_captions
from reward.score.scorer import FoundScorer, Scorer, check_scorer_captions, read_batches, score_batch
from runs.hold import hold_file
from runs.image_folders import IMAGE_SUFFIXES, list_images, read_caption
from runs.space import explain_full_disk
from runs.store import iterate_lines

MAX_NAMED = 20


@dataclass
class ScoreReport:
    """Result of scoring."""

    scored: int = 0
    already: int = 0
    """Images that had a reward of this version before."""
    unreadable: list[str] = field(default_factory=list)
    """Reasons, the first MAX_NAMED; nothing is stored of these."""
    unreadable_count: int = 0
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


def find_images(places: Iterable[Path]) -> list[ImageItem]:
    """The images of files, folders (with all below) and dataset folders, each once for each of its captions.

    A caption is the dataset's, or what stands in a .txt file beside the image. Hidden files and folders are passed
    over, and files of other types named in a warning.

    Raises:
        UserError: a place is not there, there is no image, or a caption is not Unicode text.
    """
    items: dict[ImageItem, None] = {}
    for place in places:
        if (place / "pairs.jsonl").is_file():
            for row in load_dataset(place).rows:
                items |= {ImageItem(path, row.caption): None for path in (row.image_a, row.image_b)}
        elif place.is_dir():
            items |= {ImageItem(file, read_caption(file)): None for file in list_images(place, recursive=True)}
        elif place.is_file():
            items[ImageItem(place, read_caption(place))] = None
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

    An image that changed since, another caption or another version of the scorer is a line of its own; `reading` is
    `pixels.read.READING`.

    Args:
        use_prompt: whether the scorer's prompt may stand in where not one image has a caption.
        progress: called with (images checked, total) after each batch.
    Raises:
        UserError: not one image has a caption where captions are wanted, `out` is another file or cannot be written, or
            the memory does not suffice.
    """
    without = sum(not item.caption for item in items)
    note = check_scorer_captions(scorer, without, len(items), "images", use_prompt=use_prompt)
    report = ScoreReport(note=_add_note(note, scorer, (item.caption for item in items)))
    full = explain_full_disk(out.parent, "run the same command again; it goes on after the whole lines")
    try:
        with full, hold_file(out.with_name(f".{out.name}.lock"), out), open(out, "a", encoding="utf-8") as stream:
            done = read_done(out, scorer.version)
            for batch in read_batches(find_unscored(items, done, report), batch_size, report.note_unreadable):
                values = score_batch(scorer, [image for _, image in batch], [item.caption for (item, _), _ in batch])
                for ((item, sha256), _), value in zip(batch, values.tolist(), strict=True):
                    line: dict[str, Any] = {"image": str(item.path), "sha256": sha256, "caption": item.caption}
                    line |= {"metric": scorer.metric, "version": scorer.version, "value": value, "reading": READING}
                    stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                stream.flush()
                report.scored += len(batch)
                if progress:
                    progress(report.scored + report.already + report.unreadable_count, len(items))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another file with --out.") from error
    return report


def _add_note(note: str | None, scorer: Scorer, captions: Iterable[str | None]) -> str | None:
    long = describe_long_captions(scorer.model.config, captions, scorer.model.context_tokens)
    return " ".join(said for said in (note, long) if said) or None


def find_unscored(
    items: Iterable[ImageItem], done: set[tuple[str, str, str | None]], report: ScoreReport
) -> Iterator[tuple[tuple[ImageItem, str], Path]]:
    """((item, its SHA-256), its file) of those that are not `done`; the report counts the others."""
    for item in items:
        try:
            with open(item.path, "rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            report.note_unreadable(UserError(f"{item.path}: cannot be read ({error.strerror})."))
            continue
        if (str(item.path), sha256, item.caption) in done:
            report.already += 1
        else:
            yield (item, sha256), item.path


def read_done(out: Path, version: str) -> set[tuple[str, str, str | None]]:
    """(image, sha256, caption) of the lines of this version; a last line that a kill left half-written is cut off.

    Lines of another `pixels.read.READING` do not count: some files were other pixels then.

    Raises:
        UserError: the file is there and is none of ours.
    """
    done: set[tuple[str, str, str | None]] = set()
    if not out.exists():
        return done
    try:
        for line in iterate_lines(out):
            if line["version"] == version and line.get("reading") == READING:
                done.add((line["image"], line["sha256"], line["caption"]))
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

    Args:
        use_prompt: whether the scorer's prompt may stand in where not one image has a caption.
        progress: called with (images scored, total) after each batch.
    Raises:
        UserError: there is no candidate, not one has a caption where captions are wanted, the disk is full, or the
            memory does not suffice.
    """
    candidates, captioned = count_candidates(scorer, database, data)
    total = without = 0
    captions: set[str | None] = set()
    for image in find_missing(database, data, scorer.metric, scorer.version):
        total, without = total + 1, without + (not image.caption)
        captions.add(image.caption)
    # where those that are left to score have no caption, those that are scored already may have had one
    note = check_scorer_captions(scorer, without, total, "images", use_prompt=use_prompt or captioned > 0)
    report = ScoreReport(already=candidates - total, note=_add_note(note, scorer, captions))
    wanted = ((image, image.path) for image in find_missing(database, data, scorer.metric, scorer.version))
    for batch in read_batches(wanted, batch_size, report.note_unreadable):
        values = score_batch(scorer, [image for _, image in batch], [image.caption for image, _ in batch])
        scored = zip((image for image, _ in batch), values.tolist(), strict=True)
        store_values(database, [_to_row(scorer, image, value) for image, value in scored])
        report.scored += len(batch)
        if progress:
            progress(report.scored + report.unreadable_count, total)
    return report


def check_candidates(found: FoundScorer, database: Database, data: Path, *, use_prompt: bool) -> None:
    """Check before the scorer is loaded that there are candidates, and captions where it needs them.

    Raises:
        UserError: there are none.
    """
    candidates, captioned = count_candidates(found, database, data)
    if not captioned:
        check_scorer_captions(found, candidates, candidates, "images", use_prompt=use_prompt)


def count_candidates(scorer: Scorer | FoundScorer, database: Database, data: Path) -> tuple[int, int]:
    """(candidates, those with a caption).

    Raises:
        UserError: there is no candidate.
    """
    candidates = captioned = 0
    for image in find_missing(database, data, scorer.metric, ""):  # no version is empty: all candidates
        candidates, captioned = candidates + 1, captioned + bool(image.caption)
    if not candidates:
        raise UserError(f"{data} has no restored image to score. Import some first: python -m annotate import.")
    return candidates, captioned


def _to_row(scorer: Scorer, image: CandidateImage, value: float) -> dict[str, object]:
    return {
        "image_id": image.image_id,
        "metric": scorer.metric,
        "version": scorer.version,
        "reference": "",
        "value": value,
        "raw_value": value,
        "failure": None,
    }
