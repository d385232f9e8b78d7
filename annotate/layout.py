"""The folder in which restorers write, read into a plan of what to import. No image is opened here.

`lq/` holds the photos to restore, `hq/` (optional) their ground truth, and each other folder the outputs of one method,
named after it: the same file stem in each. `lq/<stem>.txt`, else `hq/<stem>.txt`, is a photo's caption. Hidden entries
are passed over; folders inside these folders are not read, and the report says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from db.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
OTHER_IMAGE_SUFFIXES = {
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".jp2",
    ".jxl",
    ".pgm",
    ".ppm",
    ".tga",
    ".tif",
    ".tiff",
}
MAC_ARCHIVE_FOLDER = "__MACOSX"
MAX_CAPTION_CHARACTERS = 10_000
NO_LQ = "no lq image of that name"
UNPRINTABLE = "its name has characters that cannot be shown; rename it"


@dataclass(slots=True)
class PlannedSource:
    """One photo to import. Files are named relative to the plan's root."""

    key: str
    lq: str | None = None
    hq: str | None = None
    caption: str | None = None
    group: str | None = None
    candidates: dict[tuple[str, int], str] = field(default_factory=dict)
    """(method, seed) to file."""

    def files(self) -> Iterator[str]:
        """All of its files."""
        if self.lq is not None:
            yield self.lq
        if self.hq is not None:
            yield self.hq
        yield from self.candidates.values()


@dataclass
class Plan:
    """What an import is about to do, and what was found unfit before any file was opened: (name, why) each."""

    root: Path
    sources: dict[str, PlannedSource] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)


def read_folder(folder: Path) -> Plan:
    """The plan of a folder in the layout above.

    Raises:
        UserError: not a readable folder, no or two lq folders, or no image in it.
    """
    plan = Plan(folder)
    names = []
    for entry in _entries(folder):
        if entry.is_dir():
            names.append(entry.name)
        else:
            plan.ignored.append((entry.name, "lies beside the folders"))
    lq, hq = _find_special(folder, names, "lq"), _find_special(folder, names, "hq")
    if lq is None:
        found = ", ".join(names[:10]) or "no folders"
        raise UserError(
            f"{folder} has no folder called lq (found: {found}). Expected lq/, optionally hq/, and one folder a method "
            "with the same file names in each; or give a CSV or JSONL manifest."
        )
    dropped = _plan_photos(plan, lq, hq)
    for name in names:
        if name in (lq, hq):
            continue
        images, _ = _list_images(plan, name)
        if images and not name.isprintable():
            plan.refused.append((name, UNPRINTABLE))
            continue
        for stem, file in images.items():
            if stem not in dropped:
                plan.sources.setdefault(stem, PlannedSource(stem)).candidates[name, 0] = file
    return plan


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder by name, without hidden entries and what a Mac adds to archives."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".") and entry.name != MAC_ARCHIVE_FOLDER]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); name a folder or a manifest.") from error
    return sorted(shown, key=lambda entry: entry.name)


def _find_special(folder: Path, names: list[str], wanted: str) -> str | None:
    found = [name for name in names if name.lower() == wanted]
    if len(found) > 1:
        raise UserError(f"{folder} has two folders called {wanted}: {', '.join(found)}. Keep one.")
    return found[0] if found else None


def _plan_photos(plan: Plan, lq: str, hq: str | None) -> set[str]:
    """Add the photos of lq/ and hq/ to the plan; returns the stems that are left out because two lq files have them."""
    before = len(plan.refused)
    lq_images, lq_captions = _list_images(plan, lq)
    dropped = {os.path.splitext(os.path.basename(name))[0] for name, _ in plan.refused[before:]}
    hq_images, hq_captions = _list_images(plan, hq) if hq is not None else ({}, {})
    if not lq_images and not plan.refused:
        raise UserError(f"{plan.root / lq} holds no PNG, JPEG or WebP image; folders inside it are not read.")
    for stem, file in lq_images.items():
        caption = lq_captions.get(stem) or hq_captions.get(stem)
        text = _read_caption(plan, caption) if caption else None
        plan.sources[stem] = PlannedSource(stem, file, hq_images.get(stem), text)
    for stem, file in hq_images.items():
        if stem not in lq_images and stem not in dropped:
            plan.sources[stem] = PlannedSource(stem, None, file)
    return dropped


def _list_images(plan: Plan, folder: str) -> tuple[dict[str, str], dict[str, str]]:
    """(stem to image, stem to caption file) of one folder; what is unfit goes to the plan's lists."""
    by_stem: dict[str, list[str]] = {}
    captions = {}
    for entry in _entries(plan.root / folder):
        name = f"{folder}/{entry.name}"
        stem, suffix = os.path.splitext(entry.name)
        suffix = suffix.lower()
        if entry.is_dir():
            plan.ignored.append((f"{name}/", "a folder inside a folder is not read"))
        elif suffix == ".txt":
            captions[stem] = name
        elif suffix in OTHER_IMAGE_SUFFIXES:
            plan.refused.append((name, "not a PNG, JPEG or WebP image"))
        elif suffix not in IMAGE_SUFFIXES:
            plan.ignored.append((name, "not an image"))
        elif not stem.isprintable():
            plan.refused.append((name, UNPRINTABLE))
        else:
            by_stem.setdefault(stem, []).append(name)
    for names in by_stem.values():
        if len(names) > 1:
            others = ", ".join(os.path.basename(name) for name in names)
            plan.refused += [(name, f"two files of one name in this folder: {others}") for name in names]
    return {stem: names[0] for stem, names in by_stem.items() if len(names) == 1}, captions


def _read_caption(plan: Plan, name: str) -> str | None:
    """A caption file's text; None where it is empty or was refused."""
    try:
        text = (plan.root / name).read_bytes()[: 4 * MAX_CAPTION_CHARACTERS].decode("utf-8-sig").strip()
    except OSError as error:
        plan.refused.append((name, f"cannot be read ({error.strerror})"))
        return None
    except UnicodeDecodeError:
        plan.refused.append((name, "not UTF-8 text"))
        return None
    why = check_caption(text)
    if why:
        plan.refused.append((name, why))
        return None
    return text or None


def check_caption(text: str) -> str | None:
    """Why a text cannot be a caption, None where it can."""
    if len(text) > MAX_CAPTION_CHARACTERS:
        return f"a caption above {MAX_CAPTION_CHARACTERS:,} characters"
    return "a caption with a NUL character" if "\0" in text else None
