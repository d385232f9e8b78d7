"""Hash decoded pixels, to find files of different bytes that show the same picture.

They are kept in the data folder's `pixels.txt`, a line per image with its SHA-256 and the hash. Images are stored under
their SHA-256 and never change, so that a line is right for ever; without the file everything is computed again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from db.images import open_rgb
from db.models import Image
from pixels.read import ImageFault

KNOWN = "pixels.txt"
AT_ONCE = 1_000
File = tuple[str, str]
"""(SHA-256, suffix) of a stored image."""


def hash_pixels(data: Path, files: Iterable[File]) -> dict[str, str]:
    """SHA-256 of each stored image to the hash of its size and 8-bit RGB pixels; without the missing and the damaged.

    What is not known yet is decoded, in threads, and kept for the next time.
    """
    wanted = dict(files)
    known = {sha256: pixels for sha256, pixels in _read_known(data / KNOWN) if sha256 in wanted}
    missing = [(sha256, suffix) for sha256, suffix in wanted.items() if sha256 not in known]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(missing), AT_ONCE):
            part = missing[start : start + AT_ONCE]
            found = zip((sha256 for sha256, _ in part), pool.map(partial(_hash_image, data), part), strict=True)
            new = {sha256: pixels for sha256, pixels in found if pixels is not None}
            _append_known(data / KNOWN, new)
            known |= new
    return known


def _hash_image(data: Path, file: File) -> str | None:
    sha256, suffix = file
    try:
        image = open_rgb(data, Image(sha256=sha256, suffix=suffix))
    except (OSError, ImageFault):
        return None
    digest = hashlib.blake2b(f"{image.width} x {image.height}\n".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()


def _read_known(path: Path) -> Iterator[tuple[str, str]]:
    """The whole lines; one that a kill or another process left in pieces is passed over."""
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            for line in stream:
                sha256, _, pixels = line.rstrip("\n").partition(" ")
                if len(sha256) == 64 and len(pixels) == 32:
                    yield sha256, pixels
    except FileNotFoundError:
        return


def _append_known(path: Path, new: dict[str, str]) -> None:
    if not new:
        return
    try:
        with open(path, "a", encoding="ascii") as stream:
            # A line break first: the last line may have been cut off.
            stream.write("\n" + "".join(f"{sha256} {pixels}\n" for sha256, pixels in new.items()))
    except OSError:
        return  # on a full or read-only disk they are computed again the next time
