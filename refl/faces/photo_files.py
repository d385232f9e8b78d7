"""Read photos from disk as 8-bit RGB, with the limits and conversions of every image in the database."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from PIL import Image as PilImage

from db.errors import UserError
from db.images import Probe, probe_image
from pixels.read import RgbImage, decode_rgb
from runs import files
from runs.image_folders import IMAGE_SUFFIXES, is_system_entry, list_images, normalize_name

T = TypeVar("T")
R = TypeVar("R")
MAX_NAMED = 10
AHEAD = 2
"""Items under way for each thread, so that memory does not grow with their number."""
PNG_LEVEL = 3
"""Of 9: a photo of 512 x 512 takes 43 ms, 8 % larger than the 107 ms of Pillow's own 6 make it."""


class PhotosRefused(UserError):
    """Some photos are unfit; `refused` holds (file, why)."""

    def __init__(self, refused: Sequence[tuple[str, str]], advice: str) -> None:
        self.refused = list(refused)
        named = "; ".join(f"{shown(name)}: {why}" for name, why in self.refused[:MAX_NAMED])
        more = f"; and {len(self.refused) - MAX_NAMED:,} more" if len(self.refused) > MAX_NAMED else ""
        super().__init__(f"{named}{more}. {advice}")


def shown(name: str) -> str:
    """A file name as a terminal can take it: control characters and undecodable bytes escaped."""
    return name if name.isprintable() else ascii(name)


def find_photos(places: Iterable[Path]) -> list[Path]:
    """The photos of files and folders, by name; folders inside a folder are not looked into.

    Hidden files are passed over, and files of other types named in a warning.

    Raises:
        UserError: a place is not there, a folder has no photo, or two photos would have one name.
    """
    found: dict[str, Path] = {}
    for place in places:
        for file in _list_photos(place):
            name = normalize_name(file.stem)
            if found.setdefault(name, file) != file:
                raise UserError(f"Two photos of one name: {found[name]} and {file}. Rename one of them.")
    return list(found.values())


def _list_photos(place: Path) -> list[Path]:
    try:
        if not place.is_dir():
            place.stat()
            return [place]
        photos = list_images(place, recursive=False)
        inside = ", ".join(sorted(p.name for p in place.iterdir() if p.is_dir() and not is_system_entry(p.name)))
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}). Give photos or folders of them.") from error
    if not photos:
        hint = f" Folders inside it are not looked into; name one of them: {inside:.200}." if inside else ""
        raise UserError(f"No photo in {place}: no file ends in {', '.join(IMAGE_SUFFIXES)}.{hint}")
    return photos


def check_photos(
    files: Sequence[Path], progress: Callable[[int, int], None] | None = None
) -> tuple[dict[Path, Probe], list[tuple[str, str]]]:
    """Read and decode every file: (the fit ones with what is known of them, the others with the reason).

    Args:
        progress: called with (files checked, total).
    """
    fit: dict[Path, Probe] = {}
    unfit = []
    for done, (file, result) in enumerate(zip(files, map_in_threads(_check_photo, files), strict=True), 1):
        if isinstance(result, Probe):
            fit[file] = result
        else:
            unfit.append((str(file), result))
        if progress:
            progress(done, len(files))
    return fit, unfit


def _check_photo(file: Path) -> Probe | str:
    """Return all facts of a photo but its pixels, or why it is unfit."""
    if not file.stem.isprintable():
        return "its name has characters that cannot be shown; rename it"
    if not file.is_file():
        return "not a file"
    try:
        probe = probe_image(file)
    except UserError as error:
        return str(error).removeprefix(f"{file}: ")
    return replace(probe, converted=None)  # a folder's converted photos would fill the memory


def read_photo(file: Path) -> tuple[RgbImage, bytes]:
    """((H, W, 3) uint8 RGB, the bytes to store): the file's own, or a PNG where it had to be converted.

    Raises:
        UserError: see `db.images.probe_image`.
    """
    probe = probe_image(file)
    try:
        content = probe.converted or file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    return decode_rgb(content), content


def encode_png(image: RgbImage) -> bytes:
    """The image as a PNG file, nothing lost."""
    buffer = io.BytesIO()
    PilImage.fromarray(image).save(buffer, format="PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def write_whole(file: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(file, content)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); name another place") from error


def map_in_threads(work: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """`map` in threads, a few items ahead: Pillow, OpenCV and NumPy let other threads run while they work.

    Args:
        threads: None for one per core.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting = iter(items)
    with ThreadPoolExecutor(threads or cores) as pool:
        try:
            ahead = deque(pool.submit(work, item) for item in islice(waiting, (threads or cores) * AHEAD))
            while ahead:
                yield ahead.popleft().result()
                ahead.extend(pool.submit(work, item) for item in islice(waiting, 1))
        finally:
            pool.shutdown(cancel_futures=True)
