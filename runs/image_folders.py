"""List the image files of a folder by their names, and the text beside them: one rule for all that reads folders.

PNG, JPEG and WebP are read. What file managers and notebooks leave (hidden files, `__MACOSX`, `.ipynb_checkpoints`) is
passed over; whatever else is passed over is said, since a photo of another type must not be missed silently.
"""

from __future__ import annotations

import codecs
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from db.errors import UserError

log = logging.getLogger(__name__)

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp")
IMAGE_SUFFIXES = (".png", ".apng", *JPEG_SUFFIXES, ".webp")
READ = "PNG, JPEG and WebP images (.png, .jpg, .jpeg, .jfif, .jpe, .pjpeg, .webp)"
OTHER_IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for line in (
        "arw avif avifs bmp cr2 cr3 cur dds dib dng emf eps exr fits gif hdr heic heics heif heifs hif ico j2c j2k jp2",
        "jpf jpm jpx jxl jxr mpo nef orf pbm pcx pfm pgm pnm ppm psd qoi raf raw rw2 sgi svg tga tif tiff wmf xbm xpm",
    )
    for name in line.split()
)
SYSTEM_NAMES = frozenset(
    name.lower()
    for name in (
        "__MACOSX",
        "__pycache__",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "Thumbs.db",
        "desktop.ini",
        "Icon\r",
    )
)
TEXT_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("„", "“"), ("‘", "’"), ("«", "»"))
MAX_NAMED = 5


def normalize_name(name: str) -> str:
    """A name in one form (NFC): Macs write é as e and an accent, other systems as one character."""
    return unicodedata.normalize("NFC", name)


def name_forms(name: str) -> tuple[str, ...]:
    """The forms in which a name may have been stored before names were normalised; the normalised one first."""
    return tuple(dict.fromkeys((normalize_name(name), unicodedata.normalize("NFD", name), name)))


def clean_path(text: str) -> Path:
    """A path as a person pastes it: without the quotes that Windows and terminals put around it, and file://."""
    text = text.strip()
    if len(text) > 1 and (text[0], text[-1]) in QUOTES:
        text = text[1:-1].strip()
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    return Path(text)


def is_shown(name: str) -> bool:
    """Whether all of a name can be seen; what joins or parts letters of Persian, Hindi and emoji belongs to them."""
    return name.replace("\u200c", "").replace("\u200d", "").isprintable()


def is_system_entry(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system or notebook leaves: never a person's photo."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_image_name(name: str) -> bool:
    """Whether a file of that name is read as an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def describe_kind(name: str) -> str:
    """Describe the kind of file by its name: '.tif', 'no suffix', 'hidden'."""
    parts = name.rstrip("/").split("/")
    if any(is_system_entry(part) for part in parts):
        return "hidden"
    return os.path.splitext(parts[-1])[1].lower() or "no suffix"


def count_kinds(names: Iterable[str]) -> str:
    """Names counted by kind, in words: '12 .tif, 1 .bmp'."""
    kinds = Counter(describe_kind(name) for name in names)
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())


def list_images(folder: Path, *, recursive: bool) -> list[Path]:
    """The images of a folder, by name; files of other types are named in a warning, hidden ones passed over.

    Args:
        recursive: the images of the folders below too, but of hidden ones.
    Raises:
        UserError: the folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}).") from error

    images, others = [], []
    for place, folders, files in os.walk(folder, onerror=refuse):
        # Links to folders are not followed, as before: they could lead round in a circle.
        folders[:] = [name for name in folders if recursive and not is_system_entry(name)]
        shown = {name for name in files if not is_system_entry(name)}
        found = {name for name in shown if is_image_name(name)}
        stems = {os.path.splitext(name)[0] for name in found}
        images += [Path(place, name) for name in found]
        others += [Path(place, name) for name in shown - found if not _is_caption(name, stems)]
    warn_of_others(folder, sorted(others))
    return sorted(images)


def warn_of_others(folder: Path, others: Sequence[Path]) -> None:
    """Say which files of a folder are passed over since they are not images that are read."""
    if not others:
        return
    names = [path.relative_to(folder).as_posix() for path in others]
    named = ", ".join(name if is_shown(name) else ascii(name) for name in names[:MAX_NAMED])
    more = ", …" if len(names) > MAX_NAMED else ""
    log.warning("%s: passed over %s (%s%s); %s are read.", folder, count_kinds(names), named, more, READ)


def _is_caption(name: str, image_stems: Collection[str]) -> bool:
    """Whether a file is an image's caption: NAME.txt of NAME.png."""
    stem, suffix = os.path.splitext(name)
    return suffix.lower() == ".txt" and stem in image_stems


def read_caption(image: Path) -> str | None:
    """The text of NAME.txt beside an image; None where there is none, or it is empty.

    Raises:
        UserError: it cannot be read, is not a file, leads out of its folder, or is not Unicode text; names the file.
    """
    beside = image.with_suffix(".txt")
    if not os.path.lexists(beside):
        return None
    # Where the image leads elsewhere, as a download's cache has it, its caption may lie there too.
    if not any(beside.resolve().is_relative_to(folder) for folder in (image.parent.resolve(), image.resolve().parent)):
        raise UserError(f"{beside}: a link that leads out of its folder; put the caption there itself.")
    if not beside.is_file():
        raise UserError(f"{beside}: not a file.")
    return read_text(beside).strip() or None


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with its byte order mark, as Windows writes it.

    Raises:
        UserError: it cannot be read, or is in another encoding; names the file.
    """
    try:
        content = path.read_bytes()
        return content.decode(find_encoding(content[:4]))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({describe_fault(error)}); save it as UTF-8.") from error


def find_encoding(start: bytes) -> str:
    """The encoding of a text by its first four bytes: UTF-16 or 32 where they mark or show it, else UTF-8."""
    for mark, encoding in TEXT_MARKS:
        if start.startswith(mark):
            return encoding
    if len(start) == 4 and (all(start[::2]) != all(start[1::2])) and (not any(start[::2]) or not any(start[1::2])):
        return "utf-16-be" if start[0] == 0 else "utf-16-le"  # Latin letters of two bytes each
    return "utf-8-sig"


def describe_fault(error: UnicodeError) -> str:
    """Describe what of a text cannot be decoded: 'byte 0xe9', with what Windows would make of it."""
    if not isinstance(error, UnicodeDecodeError):
        return str(error)
    byte = error.object[error.start : error.start + 1]
    guess = byte.decode("cp1252", "replace")
    looks = f", {guess!r} in Windows-1252" if guess.isalpha() else ""
    return f"byte 0x{byte.hex()}{looks}"
