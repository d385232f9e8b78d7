"""Store image files in the data folder, each once: `images/ab/<sha256>.<suffix>`.

The stored bytes are what a person is shown, what is measured and what is trained on. Files that viewers and decoders
could read differently (rotated by EXIF, alpha, colours other than sRGB by a profile or a PNG's chunks, 16 bits, CMYK,
palette) are therefore converted once, when they are added, to an 8-bit RGB PNG (see `pixels`). Of all others the
picture is stored as it is packed, without metadata: people and exports must not get where and by whom a photo was
taken, nor what a method wrote about itself. The image row says what was done.

Where `images.toml` names an object store (see `db.image_store`), an image is written there first, and the data folder
is a cache: `fetch_image` and `read_stored` fetch what it lacks, compare it with the SHA-256 and keep it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
from PIL import Image as PilImage
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from db.errors import UserError
from db.image_store import AT_ONCE, is_whole, object_name, open_store
from db.models import Image
from pixels.read import ImageFault, decode_plain, read_rgb

log = logging.getLogger(__name__)

SUFFIX_OF_FORMAT = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
MEDIA_TYPE_OF_SUFFIX = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
MAX_FILE_BYTES = 256 * 2**20
UNFINISHED = ".adding-"
LEFTOVER_SECONDS = 24 * 3600


class DamagedImage(UserError):
    """A stored file that is missing, or not what its name says."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Facts of an image file that was read and decoded whole.

    `converted` holds the bytes to store where they are not the file's own (see the module's docstring).
    """

    sha256: str
    suffix: str
    width_px: int
    height_px: int
    size_bytes: int
    original_sha256: str | None = None
    conversion: str | None = None
    converted: bytes | None = None
    same_pixels: bool = True
    """Whether the stored pixels are the file's own numbers, see `pixels.read.Plain`."""


def probe_image(path: Path) -> Probe:
    """Read, hash and decode a file.

    Raises:
        UserError: not a PNG, JPEG or WebP, corrupt, truncated, animated, empty, or above
            `pixels.read.MAX_PIXELS` or MAX_FILE_BYTES.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise UserError(f"{path}: {size_bytes / 2**20:.0f} MiB, above the limit of {MAX_FILE_BYTES // 2**20} MiB")
        return probe_bytes(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def probe_bytes(content: bytes, name: str) -> Probe:
    """As `probe_image`, for bytes in memory; `name` stands in the errors."""
    try:
        plain = decode_plain(content)
    except ImageFault as fault:
        raise UserError(f"{name}: {fault}") from fault
    sha256 = hashlib.sha256(content).hexdigest()
    width_px, height_px = plain.image.size
    if not plain.conversion:
        return Probe(sha256, SUFFIX_OF_FORMAT[plain.format], width_px, height_px, len(content))
    return Probe(
        sha256=hashlib.sha256(plain.content).hexdigest(),
        suffix=SUFFIX_OF_FORMAT[plain.format],
        width_px=width_px,
        height_px=height_px,
        size_bytes=len(plain.content),
        original_sha256=sha256,
        conversion=plain.conversion,
        converted=plain.content,
        same_pixels=plain.same_pixels,
    )


def image_path(data: Path, sha256: str, suffix: str) -> Path:
    """Return the path of an image in the data folder, where `fetch_image` puts it if it is not there."""
    return data / "images" / object_name(sha256, suffix)


def write_image(data: Path, probe: Probe, file: Path | bytes) -> bool:
    """Put the probed file's bytes in place, whole or not at all; returns False where they already were.

    A file there whose bytes are others, damaged or cut, is replaced. In an object store they are first: what was
    imported is never on this machine alone.

    Raises:
        UserError: the file changed since it was probed, the disk is full, or the object store is away.
    """
    target, store = image_path(data, probe.sha256, probe.suffix), open_store(data)
    name = object_name(probe.sha256, probe.suffix)
    is_here = has_hash(target, probe.sha256)
    is_stored = store is None or store.size(name) == probe.size_bytes
    if is_here and is_stored:
        return False
    content = probe.converted
    if content is None:
        content = file if isinstance(file, bytes) else file.read_bytes()
        if not is_whole(content, probe.sha256):
            raise UserError(f"{file!s:.200}: changed while it was being imported; import again")
    if store is not None and not is_stored:
        store.write(name, content)
    if not is_here:
        _put_in_place(target, content)
    return not is_here


def _put_in_place(target: Path, content: bytes) -> None:
    temporary = target.with_name(f"{UNFINISHED}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); free some disk space") from error


def sweep_unfinished(data: Path) -> int:
    """Remove the unfinished files that killed imports left in the data folder; returns how many.

    Those of a process that lives stay, and those of another machine for a day.
    """
    removed = 0
    for path in (data / "images").glob(f"*/{UNFINISHED}*"):
        host, _, process = path.name.removeprefix(UNFINISHED).rpartition("-")[0].rpartition("-")
        try:
            if host == socket.gethostname():
                is_left = not psutil.pid_exists(int(process))
            else:  # of an earlier version where there is no host
                is_left = not host or time.time() - path.stat().st_mtime > LEFTOVER_SECONDS
            if is_left:
                path.unlink()
                removed += 1
        except (OSError, ValueError):  # gone since, or not ours to remove
            continue
    return removed


def read_stored(data: Path, sha256: str, suffix: str) -> bytes:
    """The bytes of a stored image, which are those that were imported.

    What the data folder lacks, or holds damaged, is fetched from the object store where there is one, and kept.

    Raises:
        DamagedImage: they are not, or cannot be read.
        StoreAwayError: the object store does not answer.
    """
    path, fault = image_path(data, sha256, suffix), "is not the file that was imported"
    try:
        content = path.read_bytes()
        if is_whole(content, sha256):
            return content
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    if (store := open_store(data)) is not None:
        fetched = store.read(object_name(sha256, suffix))
        if fetched is not None and is_whole(fetched, sha256):
            _put_in_place(path, fetched)
            return fetched
        fault += f", and {store.url} {'lacks it' if fetched is None else 'holds other bytes'}"
    raise DamagedImage(f"{path} {fault}; import its original again.")


def fetch_image(data: Path, sha256: str, suffix: str) -> Path:
    """The path of a stored image, its file fetched from the object store where the data folder lacks it.

    An image that is nowhere whole has no file, with a line in the log: whoever reads it says so.

    Raises:
        StoreAwayError: the object store does not answer.
    """
    path = image_path(data, sha256, suffix)
    if open_store(data) is not None and not path.exists():
        try:
            read_stored(data, sha256, suffix)
        except DamagedImage as error:
            log.warning("%s", error)
    return path


def fetch_images(data: Path, named: Iterable[tuple[str, str]]) -> list[Path]:
    """As `fetch_image`, of many (SHA-256, suffix), some at a time."""
    if open_store(data) is None:
        return [image_path(data, *one) for one in named]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda one: fetch_image(data, *one), named))


def has_hash(path: Path, sha256: str) -> bool:
    """Whether a file is there with the bytes that its name promises."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
    except OSError:  # it is not there, or cannot be read
        return False


def add_image(session: Session, data: Path, probe: Probe, file: Path | bytes) -> Image:
    """The row of the probed image, its file in place; adds both where they are new."""
    write_image(data, probe, file)
    image = session.scalar(select(Image).where(Image.sha256 == probe.sha256))
    if image is None:
        image = Image(
            sha256=probe.sha256,
            suffix=probe.suffix,
            width_px=probe.width_px,
            height_px=probe.height_px,
            size_bytes=probe.size_bytes,
            original_sha256=probe.original_sha256,
            conversion=probe.conversion,
        )
        session.add(image)
        session.flush()
    return image


def find_image(session: Session, sha256: str) -> Image | None:
    """The stored image of a file with this SHA-256, the converted one where it had to be converted."""
    return session.scalar(select(Image).where(or_(Image.sha256 == sha256, Image.original_sha256 == sha256)))


def open_rgb(data: Path, image: Image) -> PilImage.Image:
    """The stored image as 8-bit RGB."""
    return PilImage.fromarray(read_rgb(fetch_image(data, image.sha256, image.suffix)))
