"""Read stored images for a browser: whole, and nothing but the picture.

A file is compared with the SHA-256 that names it once, and again when its size or time change: hashing takes about as
long as sending. Which pairs are shown is decided by a look at the files' sizes and by what was found before.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NamedTuple

from db.images import DamagedImage, image_path, read_stored
from pixels.metadata import strip_metadata

MAX_KNOWN = 100_000
Stamp = tuple[int, int, int]
"""inode, bytes, time of change in ns."""


class StoredImage(NamedTuple):
    """Facts of an image that a page, its address and its file need: columns of its row."""

    sha256: str
    suffix: str
    width_px: int
    height_px: int
    size_bytes: int


class StoredImages:
    """The images of a data folder, with what is known of their files."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._whole: dict[str, tuple[Stamp, bool]] = {}
        """By SHA-256; with whether the file is nothing but a picture."""
        self._damaged: dict[str, Stamp | None] = {}
        self._lock = threading.Lock()

    def read(self, sha256: str, suffix: str) -> bytes:
        """Read the sendable bytes of a stored image: without metadata, even if an earlier version stored it with some.

        Raises:
            DamagedImage: the file is missing, or not what its name says.
        """
        stamp = self._stamp(sha256, suffix)
        known, is_plain = self._whole.get(sha256, (None, False))
        try:
            if stamp is not None and stamp == known:
                content = image_path(self._data, sha256, suffix).read_bytes()
            else:
                content, is_plain = read_stored(self._data, sha256, suffix), False
        except (OSError, DamagedImage) as error:
            with self._lock:
                self._damaged[sha256] = stamp
                self._whole.pop(sha256, None)
            raise DamagedImage(str(error)) from error
        if is_plain:
            return content
        stripped, found = strip_metadata(content)
        with self._lock:
            if len(self._whole) >= MAX_KNOWN:
                self._whole.clear()
            if stamp is not None:
                self._whole[sha256] = (stamp, not found)
            self._damaged.pop(sha256, None)
        return stripped

    def is_damaged(self, image: StoredImage) -> bool:
        """Whether an image cannot be shown, as far as a look at its file tells."""
        stamp = self._stamp(image.sha256, image.suffix)
        if stamp is None or stamp[1] != image.size_bytes:
            return True
        return image.sha256 in self._damaged and self._damaged[image.sha256] == stamp

    def _stamp(self, sha256: str, suffix: str) -> Stamp | None:
        """None where there is no file."""
        try:
            status = os.stat(image_path(self._data, sha256, suffix))
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns
