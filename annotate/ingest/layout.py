"""Read the folder in which restorers write into a plan of what to import, without opening an image.

`lq/` holds the photos to restore, `hq/` (optional) their ground truth, and each other folder the outputs of one method,
named after it: the same file stem in each. `lq/<stem>.txt`, else `hq/<stem>.txt`, is a photo's caption. Names are
compared in their normal form (NFC). Folders inside these folders are not read; every file that is passed over is in the
plan, with the reason.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from annotate.ingest.names import Matching
from db.errors import UserError
from runs.image_folders import (
    OTHER_IMAGE_SUFFIXES,
    count_kinds,
    describe_fault,
    find_encoding,
    is_image_name,
    is_shown,
    is_system_entry,
    normalize_name,
)

MAX_CAPTION_CHARACTERS = 10_000
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
UNPRINTABLE = "its name has characters that cannot be shown; rename it"
HIDDEN = "hidden, or left by a system"


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
    """Plan of an import, and what was found unfit before any file was opened: (name, why) each."""

    root: Path
    sources: dict[str, PlannedSource] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    """Files that no part of the import is made of."""
    matching: Matching = field(default_factory=Matching, compare=False)
    """Match of the names of outputs with those of the photos."""


@dataclass
class _Listing:
    """The images of one folder and the captions beside them, by stem."""

    images: dict[str, str] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)


def read_folder(folder: Path, *, strip_suffixes: Sequence[str] = (), ignore_case: bool = False) -> Plan:
    """The plan of a folder in the layout above.

    Args:
        strip_suffixes: endings such as '_out' that outputs have after the photo's name, and that are taken off.
        ignore_case: whether names that differ only in case are one.
    Raises:
        UserError: not a readable folder, no or two lq folders, two folders of one name, or no image in lq.
    """
    plan = Plan(folder)
    names = []
    for entry in _entries(plan, ""):
        if entry.is_dir():
            names.append(entry.name)
        elif os.path.splitext(entry.name)[1].lower() in SPREADSHEETS:
            plan.refused.append(
                (entry.name, "a spreadsheet; save it as CSV UTF-8, or move it away if it is not a manifest")
            )
        else:
            plan.ignored.append((entry.name, "lies beside the folders"))
    lq, hq = _find_special(folder, names, "lq"), _find_special(folder, names, "hq")
    if lq is None:
        found = ", ".join(names[:10]) or "no folders"
        raise UserError(
            f"{folder} has no folder called lq (found: {found}). Expected lq/, optionally hq/, and a folder per method "
            "with the same file names in each; or give a CSV or JSONL manifest."
        )
    before = len(plan.refused)
    photos = _list_images(plan, lq)
    if not photos.images and len(plan.refused) == before:
        raise UserError(f"{plan.root / lq} holds no PNG, JPEG or WebP image; folders inside it are not read.")
    # Two files of one name are refused, and all that other folders have of that name goes without a word.
    dropped = {_stem(name) for name, _ in plan.refused[before:]}
    plan.matching = Matching(photos.images, strip_suffixes, ignore_case=ignore_case)
    for stem, file in photos.images.items():
        key = plan.matching.photo_key(stem)
        plan.sources[key] = PlannedSource(key, file)
    _plan_truths(plan, photos, _list_some_images(plan, hq) if hq is not None else _Listing(), dropped)
    for name in names:
        if name not in (lq, hq):
            _plan_method(plan, name, dropped)
    return plan


def _plan_truths(plan: Plan, photos: _Listing, truths: _Listing, dropped: set[str]) -> None:
    """Add the photos' ground truth and captions."""
    captions: dict[str, str] = {}
    for listing in (photos, truths):
        for stem, name in listing.captions.items():
            key = plan.matching.match(_without_image_suffix(stem))
            if key not in plan.sources and key not in dropped:
                plan.ignored.append((name, "a caption without a photo of that name"))
            elif captions.setdefault(key, name) != name:
                plan.ignored.append((name, f"the caption is {captions[key]}"))
    for key, file in _match_all(plan, truths.images).items():
        if key not in dropped:
            plan.sources.setdefault(key, PlannedSource(key)).hq = file
    for key, name in captions.items():
        if key in plan.sources:
            plan.sources[key].caption = _read_caption(plan, name)


def _list_some_images(plan: Plan, folder: str) -> _Listing:
    """As `_list_images`, of a folder that is refused where it holds files and no image among them."""
    n_refused, n_ignored = len(plan.refused), len(plan.ignored)
    listing = _list_images(plan, folder)
    passed_over = [name for name, why in plan.ignored[n_ignored:] if why != HIDDEN]
    if passed_over and not listing.images and not listing.captions and len(plan.refused) == n_refused:
        plan.refused.append((f"{folder}/", _describe_useless(folder, passed_over)))
    return listing


def _plan_method(plan: Plan, name: str, dropped: set[str]) -> None:
    images = _list_some_images(plan, name).images
    method = normalize_name(name).strip()
    if images and not is_shown(name):
        plan.refused.append((name, UNPRINTABLE))
        return
    if any(method == known for source in plan.sources.values() for known, _ in source.candidates):
        raise UserError(f"{plan.root} has two folders whose names are the same, {name!r}; rename one of them.")
    for key, file in _match_all(plan, images).items():
        if key not in dropped:
            plan.sources.setdefault(key, PlannedSource(key)).candidates[method, 0] = file


def _describe_useless(name: str, files: Sequence[str]) -> str:
    """Explain why a method's folder is not usable: what is in it, and where its images are."""
    inner = sorted({os.path.dirname(file) for file in files if is_image_name(file)})
    if inner:
        return (
            f"holds no image itself, but {', '.join(f'{folder}/' for folder in inner[:5])} does; move the images up "
            f"into {name}/" + (", of one of these folders" if len(inner) > 1 else "")
        )
    return f"holds no PNG, JPEG or WebP image, but {count_kinds(files)}"


def _match_all(plan: Plan, images: dict[str, str]) -> dict[str, str]:
    """Source key to file; files that come to one key are refused."""
    by_key: dict[str, list[str]] = {}
    for stem, name in images.items():
        by_key.setdefault(plan.matching.match(stem), []).append(name)
    return _without_doubles(plan, by_key)


def _without_doubles(plan: Plan, by_name: dict[str, list[str]]) -> dict[str, str]:
    for names in by_name.values():
        if len(names) > 1:
            others = ", ".join(os.path.basename(name) for name in names)
            plan.refused += [(name, f"two files of one name in this folder: {others}") for name in names]
    return {key: names[0] for key, names in by_name.items() if len(names) == 1}


def _entries(plan: Plan, folder: str) -> list[os.DirEntry[str]]:
    """List a folder by name; hidden entries and those that systems leave go to the plan's list."""
    place = plan.root / folder
    try:
        with os.scandir(place) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}); name a folder or a manifest.") from error
    for entry in found:
        if is_system_entry(entry.name):
            name = f"{folder}/{entry.name}" if folder else entry.name
            plan.ignored += [(file, HIDDEN) for file in _files_of(plan.root, name)]
    return [entry for entry in found if not is_system_entry(entry.name)]


def _files_of(root: Path, name: str) -> list[str]:
    """A file itself, or all files in and below a folder; an empty folder itself."""
    if not (root / name).is_dir() or (root / name).is_symlink():
        return [name]
    files = [os.path.join(place, file) for place, _, found in os.walk(root / name) for file in found]
    return sorted(os.path.relpath(file, root).replace(os.sep, "/") for file in files) or [f"{name}/"]


def _find_special(folder: Path, names: list[str], wanted: str) -> str | None:
    found = [name for name in names if name.lower() == wanted]
    if len(found) > 1:
        raise UserError(f"{folder} has two folders called {wanted}: {', '.join(found)}. Keep one.")
    return found[0] if found else None


def _list_images(plan: Plan, folder: str) -> _Listing:
    """The images and captions of one folder; what is unfit or passed over goes to the plan's lists."""
    by_stem: dict[str, list[str]] = {}
    captions: dict[str, str] = {}
    has_captions = folder.lower() in ("lq", "hq")
    for entry in _entries(plan, folder):
        name = f"{folder}/{entry.name}"
        stem, suffix = os.path.splitext(normalize_name(entry.name))
        suffix = suffix.lower()
        if entry.is_dir():
            plan.ignored += [(file, "a folder inside a folder is not read") for file in _files_of(plan.root, name)]
        elif suffix == ".txt" and has_captions:
            if captions.setdefault(stem, name) != name:
                plan.ignored.append((name, f"the caption is {captions[stem]}"))
        elif suffix in OTHER_IMAGE_SUFFIXES:
            plan.refused.append((name, "not a PNG, JPEG or WebP image"))
        elif not is_image_name(entry.name):
            plan.ignored.append((name, "not an image"))
        elif not is_shown(stem):
            plan.refused.append((name, UNPRINTABLE))
        else:
            by_stem.setdefault(stem, []).append(name)
    return _Listing(_without_doubles(plan, by_stem), captions)


def _stem(name: str) -> str:
    return os.path.splitext(normalize_name(os.path.basename(name)))[0]


def _without_image_suffix(stem: str) -> str:
    """NAME of NAME.png: some programs call a caption NAME.png.txt."""
    return os.path.splitext(stem)[0] if is_image_name(stem) else stem


def _read_caption(plan: Plan, name: str) -> str | None:
    """A caption file's text; None where it is empty or was refused."""
    try:
        content = _read_start(plan.root / name, 4 * MAX_CAPTION_CHARACTERS + 4)
        text = content.decode(find_encoding(content[:4])).strip()
    except OSError as error:
        is_link = error.errno == errno.ELOOP
        fault = "a link; put the caption there itself" if is_link else f"cannot be read ({error.strerror})"
        plan.refused.append((name, fault))
        return None
    except UnicodeError as error:
        plan.refused.append((name, f"not UTF-8 text ({describe_fault(error)}); save it as UTF-8"))
        return None
    why = check_caption(text)
    if why:
        plan.refused.append((name, why))
        return None
    return text or None


def _read_start(path: Path, size: int) -> bytes:
    """The first bytes of a file.

    Raises:
        OSError: it is a link, which may lead to any file of this machine, or no file: a pipe would be waited for.
    """
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(opened, "rb") as stream:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError(errno.EINVAL, "not a file")
        return stream.read(size)


def check_caption(text: str) -> str | None:
    """Return why a text cannot be a caption, None where it can."""
    if len(text) > MAX_CAPTION_CHARACTERS:
        return f"a caption above {MAX_CAPTION_CHARACTERS:,} characters"
    return "a caption with a NUL character" if "\0" in text else None
