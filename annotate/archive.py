"""Unpack an uploaded zip of photos without trusting it."""

from __future__ import annotations

import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp

from annotate.layout import MAC_ARCHIVE_FOLDER
from annotate.manifest import TABLE_SUFFIXES
from db.errors import UserError
from db.images import MAX_FILE_BYTES

MAX_ENTRIES = 500_000
MAX_TOTAL_BYTES = 50 * 2**30
LEFTOVER_SECONDS = 24 * 3600
PREFIX = "unpacked-"
COPY_BYTES = 2**20


@contextmanager
def unpacked(data: Path, archive: Path) -> Iterator[Path]:
    """What to import from a zip file, unpacked into the data folder for as long as the block lasts.

    The folder with lq/ in it, a dataset folder, an HPDv2 train.json or a manifest; the zip may hold it at its top or
    inside one folder.

    Raises:
        UserError: not a zip file, or one with encrypted, linked, outside, too many or too large entries.
    """
    uploads = data / "uploads"
    uploads.mkdir(parents=True, exist_ok=True)
    for leftover in uploads.glob(f"{PREFIX}*"):  # of imports that were killed
        if leftover.is_dir() and time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(mkdtemp(prefix=PREFIX, dir=uploads))
    try:
        extract_zip(archive, folder)
        yield find_import(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def extract_zip(
    archive: Path, folder: Path, *, max_entries: int = MAX_ENTRIES, max_total_bytes: int = MAX_TOTAL_BYTES
) -> None:
    """Unpack a zip file into an empty folder.

    Raises:
        UserError: as `unpacked`; the sizes that count are those that come out, not those that the zip declares.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            if len(entries) > max_entries:
                raise UserError(f"{archive.name} holds {len(entries):,} files, above the limit of {max_entries:,}.")
            left = max_total_bytes
            for entry in entries:
                target = folder / _checked_path(archive, entry)
                target.parent.mkdir(parents=True, exist_ok=True)
                left -= _extract_entry(opened, entry, target, min(left, MAX_FILE_BYTES))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{archive.name} is not a whole zip file ({error}); make it anew.") from error
    except OSError as error:
        raise UserError(f"{archive.name} cannot be unpacked: {error.strerror or error}.") from error


def _checked_path(archive: Path, entry: zipfile.ZipInfo) -> PurePosixPath:
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise UserError(
            f"{archive.name} holds {entry.filename!r}, which leads out of its folder; nothing was unpacked."
        )
    if kind not in (0, stat.S_IFREG):
        raise UserError(
            f"{archive.name} holds {entry.filename!r}, which is a link and no file; pack the files themselves."
        )
    if entry.flag_bits & 1:
        raise UserError(f"{archive.name} is encrypted; make it without a password.")
    return path


def _extract_entry(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, limit: int) -> int:
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
    """The folder or manifest to import of what was unpacked: down through folders that hold only one folder."""
    entries = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name != MAC_ARCHIVE_FOLDER]
    folders = [path for path in entries if path.is_dir()]
    manifests = [path for path in entries if path.suffix.lower() in TABLE_SUFFIXES]
    if any(path.name.lower() == "lq" for path in folders) or (folder / "pairs.jsonl").exists():
        return folder
    if (folder / "train.json").exists():
        return folder / "train.json"
    if len(manifests) == 1:
        return manifests[0]
    return find_import(folders[0]) if len(folders) == 1 else folder
