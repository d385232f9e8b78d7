"""Unpack an uploaded zip of photos without trusting it."""

from __future__ import annotations

import errno
import lzma
import re
import shutil
import stat
import struct
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp

from dataset.tables import TABLE_SUFFIXES, read_columns
from db.errors import UserError
from db.images import MAX_FILE_BYTES
from runs.image_folders import is_system_entry
from runs.space import MIN_FREE_BYTES, say_room

MAX_ENTRIES = 500_000
MAX_TOTAL_BYTES = 50 * 2**30
MAX_RATIO = 100
"""Photos hardly shrink, tables by 30: what unpacks to more times its size was made to fill a disk."""
SMALL_BYTES = 64 * 2**20
"""Unpacked bytes below which any ratio is allowed."""
MAX_DEPTH = 16
"""Folders inside each other."""
LEFTOVER_SECONDS = 24 * 3600
PREFIX = "unpacked-"
HPDV2_FILES = ("train.json", "val.json", "test.json")
COPY_BYTES = 2**20
ENCRYPTED, NAME_IS_UTF8 = 0x1, 0x800
DOS_FOLDER = 0x10
UNICODE_PATH = 0x7075
READABLE_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
METHOD_NAMES = {
    1: "Shrink",
    6: "Implode",
    9: "Deflate64, as Windows packs files above 2 GB",
    93: "Zstandard",
    95: "XZ",
    96: "a JPEG method",
    97: "WavPack",
    98: "PPMd",
}
"""APPNOTE.TXT 4.4.5."""
CODE_PAGES = {
    "cp936": "Chinese",
    "cp932": "Japanese",
    "cp949": "Korean",
    "cp950": "Chinese, traditional",
    "cp866": "Cyrillic",
    "cp1251": "Cyrillic, Windows",
    "cp850": "Western European",
    "cp1252": "Western European, Windows",
}
OTHER_FILES = {
    b"Rar!": "a RAR archive; unpack it and import the folder",
    b"7z\xbc\xaf": "a 7z archive; unpack it and import the folder",
    b"\x1f\x8b": "a gzip archive; unpack it and import the folder",
    b"\xfd7zXZ": "an xz archive; unpack it and import the folder",
    b"BZh": "a bzip2 archive; unpack it and import the folder",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it and import the folder",
    b"PK\x07\x08": "the first part of a split zip; join the parts (zip -s 0 FILE --out WHOLE)",
    b"PK\x03\x04": "the beginning of one, its end is missing; copy or download it again",
    b"<": "a web page; get the file itself",
    b"version ": "a Git LFS pointer; run `git lfs pull` where it was cloned",
    b"%PDF": "a PDF",
}
"""First bytes of a file that is not a whole zip to what it is, and what to do."""
OUTSIDE = "nothing was unpacked. If you trust it, unpack it yourself and import the folder"
UNPACK = "unpack it, keep the one that you mean, and import the folder"
UNPACK_FLAT = "unpack it, and import the folder that holds lq/"
REPACK = "unpack it and import the folder, or pack it anew with Deflate (zip -r, or 7z a -tzip -mm=Deflate)"

Entry = zipfile.ZipInfo


@contextmanager
def unpacked(data: Path, archive: Path) -> Iterator[Path]:
    """Unpack a zip file into the data folder for the length of the block; give the path to import from.

    The folder with lq/ in it, a dataset folder, an HPDv2 train.json or a manifest; the zip may hold it at its top or
    inside one folder.

    Raises:
        UserError: not a zip file, or one with encrypted, linked, outside, too many or too large entries.
    """
    uploads = data / "uploads"
    uploads.mkdir(parents=True, exist_ok=True)
    sweep_unpacked(data)
    folder = Path(mkdtemp(prefix=PREFIX, dir=uploads))
    try:
        extract_zip(archive, folder)
        yield find_import(folder)
    except UserError as error:
        error.args = (str(error).replace(str(folder), archive.name),)  # where it was unpacked is gone and tells nothing
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_unpacked(data: Path) -> None:
    """Remove what imports that were killed had unpacked, a day later."""
    for leftover in (data / "uploads").glob(f"{PREFIX}*"):
        if leftover.is_dir() and time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)


def extract_zip(
    archive: Path, folder: Path, *, max_entries: int = MAX_ENTRIES, max_total_bytes: int = MAX_TOTAL_BYTES
) -> None:
    """Unpack a zip file into an empty folder; every name in it is checked before anything is written.

    Raises:
        UserError: as `unpacked`; the sizes that count are those that come out, not those that the zip declares.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = _plan_entries(archive, opened.infolist(), max_entries)
            _check_sizes(archive, folder, entries.values(), max_total_bytes)
            left = max_total_bytes
            for path, entry in entries.items():
                target = folder / path
                if not target.is_relative_to(folder):  # a drive's letter, on Windows
                    raise UserError(f"{archive.name} holds {entry.filename!r}, which leads out of its folder.")
                target.parent.mkdir(parents=True, exist_ok=True)
                left -= _extract_entry(opened, entry, target, min(left, MAX_FILE_BYTES))
    except UnicodeError as error:
        raise UserError(
            f"{archive.name} says that its names are UTF-8, and they are not ({error}); {REPACK}."
        ) from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        if not zipfile.is_zipfile(archive) and (other := _name_format(archive)):
            raise UserError(f"{archive.name} is not a zip file but {other}.") from error
        raise UserError(f"{archive.name} is not a whole zip file ({error}); {REPACK}.") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(
            f"{archive.name} holds {Path(str(error.filename)).name!r} twice, as a file and a folder or in another "
            f"case; {UNPACK}."
        ) from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            long = Path(str(error.filename)).name
            raise UserError(
                f"{archive.name} holds a name that is too long for this disk, {long[:60]!r}…; shorten it."
            ) from error
        if error.errno is None:  # of bzip2
            raise UserError(f"{archive.name} is not a whole zip file ({error}); {REPACK}.") from error
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"{archive.name} cannot be unpacked: the disk of {folder.parent} is full; free some."
            ) from error
        raise UserError(f"{archive.name} cannot be unpacked: {error.strerror or error}.") from error


def _plan_entries(archive: Path, found: Sequence[zipfile.ZipInfo], max_entries: int) -> dict[PurePosixPath, Entry]:
    """Path to entry of all files in a zip; a file that is in it twice with the same content counts once."""
    if len(found) > max_entries:
        raise UserError(f"{archive.name} holds {len(found):,} files, above the limit of {max_entries:,}.")
    entries: dict[PurePosixPath, Entry] = {}
    for entry in found:
        path = _checked_path(archive, entry)
        if path is None:
            continue
        other = entries.setdefault(path, entry)
        if (other.CRC, other.file_size) != (entry.CRC, entry.file_size):
            raise UserError(f"{archive.name} holds {str(path)!r} twice, with different content; {UNPACK}.")
    return entries


def _check_sizes(archive: Path, folder: Path, entries: Iterable[Entry], max_total_bytes: int) -> None:
    """Refuse what would not fit, before anything is written. An entry that declares too little is cut off at that."""
    packed, size = archive.stat().st_size, 0
    for entry in entries:
        size += entry.file_size
        if entry.file_size > MAX_FILE_BYTES or size > max_total_bytes:
            raise UserError(f"{entry.filename!r} is too large when unpacked; nothing was imported.")
    if size > max(SMALL_BYTES, MAX_RATIO * packed):
        raise UserError(
            f"{archive.name} unpacks to {size / max(1, packed):,.0f} times its size, which no photos do; nothing was "
            "unpacked. If you trust it, unpack it yourself and import the folder."
        )
    if shutil.disk_usage(folder).free < size + MIN_FREE_BYTES:
        raise UserError(f"{archive.name} is too large when unpacked: {say_room(folder, size + MIN_FREE_BYTES)}.")


def _checked_path(archive: Path, entry: Entry) -> PurePosixPath | None:
    """Return the path of an entry below the folder; None for a folder."""
    name = _read_name(archive, entry).replace("\\", "/")
    path = PurePosixPath(name)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    is_folder = name.endswith("/") or kind == stat.S_IFDIR or (entry.external_attr & DOS_FOLDER and not entry.file_size)
    if is_folder:
        return None
    if not path.parts or path.is_absolute() or ".." in path.parts or re.fullmatch("[A-Za-z]:", path.parts[0]):
        raise UserError(f"{archive.name} holds {name!r}, which leads out of its folder; {OUTSIDE}.")
    if len(path.parts) > MAX_DEPTH:
        raise UserError(f"{archive.name} holds folders more than {MAX_DEPTH} deep: {name[:80]!r}…; {UNPACK_FLAT}.")
    if kind not in (0, stat.S_IFREG):
        raise UserError(f"{archive.name} holds {name!r}, a link; pack the file itself.")
    if entry.flag_bits & ENCRYPTED:
        raise UserError(f"{archive.name} is encrypted; make it without a password.")
    if entry.compress_type not in READABLE_METHODS:
        method = METHOD_NAMES.get(entry.compress_type, f"method {entry.compress_type}")
        raise UserError(f"{archive.name} holds {name!r} packed with {method}, which cannot be read here; {REPACK}.")
    return path


def _read_name(archive: Path, entry: Entry) -> str:
    """An entry's name: as the zip marks its encoding, else as UTF-8.

    Raises:
        UserError: it is neither; what it says in the usual code pages is named, since which one it is stands nowhere.
    """
    if entry.flag_bits & NAME_IS_UTF8 or entry.orig_filename.isascii():
        return entry.filename
    raw = entry.orig_filename.encode("cp437")  # zipfile reads an unmarked name so, which loses nothing
    with suppress(UnicodeDecodeError):
        return (_find_unicode_path(entry.extra, raw) or raw).decode("utf-8").partition("\0")[0]
    readings = []
    for page, where in CODE_PAGES.items():
        with suppress(UnicodeDecodeError):
            text = raw.decode(page)
            if text.isprintable():
                readings.append(f"{text!r} in {page} ({where})")
    said = ", ".join(readings) or ascii(raw)
    raise UserError(
        f"{archive.name} holds a name in an old code page that it does not tell, not in UTF-8: {said}. Unpack it on "
        "the computer that made it and import the folder, or pack it anew with names in UTF-8 (7z a -tzip -mcu=on)."
    )


def _find_unicode_path(extra: bytes, raw: bytes) -> bytes | None:
    """The UTF-8 name that Info-ZIP keeps beside an old one (extra field 0x7075 of APPNOTE.TXT 4.6.9)."""
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        body, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and len(body) > 5 and struct.unpack("<L", body[1:5])[0] == zlib.crc32(raw):
            return body[5:]
    return None


def _name_format(archive: Path) -> str:
    """Name the format of a file that is not a zip, for the message; empty where it is unknown."""
    try:
        with open(archive, "rb") as stream:
            start = stream.read(8)
    except OSError:
        return ""
    if not start:
        return "empty; copy or download it again"
    return next((what for magic, what in OTHER_FILES.items() if start.startswith(magic)), "")


def _extract_entry(opened: zipfile.ZipFile, entry: Entry, target: Path, limit: int) -> int:
    """Write one entry and return its size."""
    size = 0
    with opened.open(entry) as packed, open(target, "xb") as stream:
        while block := packed.read(COPY_BYTES):
            size += len(block)
            if size > limit:
                raise UserError(f"{entry.filename!r} is too large when unpacked; nothing was imported.")
            stream.write(block)
    return size


def find_import(folder: Path) -> Path:
    """The folder or manifest to import of what was unpacked: down through folders that hold only one folder.

    Raises:
        UserError: it holds several of HPDv2's files, of which one is imported at a time.
    """
    entries = [path for path in folder.iterdir() if not is_system_entry(path.name)]
    folders = [path for path in entries if path.is_dir()]
    manifests = [path for path in entries if path.suffix.lower() in TABLE_SUFFIXES]
    if len(manifests) > 1:
        manifests = [path for path in manifests if {"source", "lq"} <= set(read_columns(path))]
    if any(path.name.lower() == "lq" for path in folders) or (folder / "pairs.jsonl").exists():
        return folder
    hpdv2 = [folder / name for name in HPDV2_FILES if (folder / name).is_file()]
    if len(hpdv2) > 1:
        names = " and ".join(path.name for path in hpdv2)
        raise UserError(f"The zip holds {names}; unpack it and import one after the other.")
    if hpdv2:
        return hpdv2[0]
    if len(manifests) == 1:
        return manifests[0]
    return find_import(folders[0]) if len(folders) == 1 else folder


def list_outside(found: Path) -> list[str]:
    """The files of an unpacked zip that lie outside what `find_import` found, such as those beside the only folder."""
    top = next((parent for parent in found.parents if parent.name.startswith(PREFIX)), None)
    inside = found if found.is_dir() else found.parent
    if top is None:
        return []
    files = (path for path in top.rglob("*") if path.is_file() and not path.is_relative_to(inside))
    return sorted(path.relative_to(top).as_posix() for path in files)
