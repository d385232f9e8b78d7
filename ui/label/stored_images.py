"""Read stored images for a browser: whole, and nothing but the picture.

A file is compared with the SHA-256 that names it once, and again when its size or time change: hashing takes about as
long as sending. Which pairs are shown is decided by a look at the files' sizes and by what was found before; with an
object store (see `db.image_store`) by the latter alone, for what the data folder lacks can be fetched.

With `serve = "redirect"` a browser is sent to a signed address of the store. That address holds the image's SHA-256,
which our own addresses hide. It tells no more than the bytes do, from which everybody can compute it, and nothing of
the method; but who looks at the network's traffic sees without effort that an image came before. So the app sends the
bytes unless `images.toml` says otherwise. Names under a key would tell that too, for an image would have one for good,
and nobody could compare the store with a folder any more.
"""

from __future__ import annotations

import math
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

from db.image_store import object_name, open_store
from db.images import DamagedImage, image_path, read_stored
from pixels.metadata import strip_metadata

MAX_KNOWN = 100_000
LOOK_AGAIN_SECONDS = 60.0
"""After which an image that the object store lacked is looked for again: it may have been pushed since."""
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
        self._store = open_store(data)
        self._in_store: set[str] = set()
        self._whole: dict[str, tuple[Stamp, bool]] = {}
        """By SHA-256; with whether the file is nothing but a picture."""
        self._damaged: dict[str, tuple[Stamp | None, float]] = {}
        """With the time at which it was found."""
        self._lock = threading.Lock()

    def read(self, sha256: str, suffix: str) -> bytes:
        """Read the sendable bytes of a stored image: without metadata, even if an earlier version stored it with some.

        Raises:
            DamagedImage: the file is missing, or not what its name says.
            StoreAwayError: it is not here, and the object store does not answer.
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
                self._damaged[sha256] = stamp, time.monotonic()
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

    def find_address(self, sha256: str, suffix: str) -> str | None:
        """A signed address of the image in the object store; None where the app has to send it.

        Raises:
            StoreAwayError: the object store does not answer.
        """
        if self._store is None or self._store.settings.serve == "app":
            return None
        name = object_name(sha256, suffix)
        if sha256 not in self._in_store:
            if self._store.size(name) is None:
                return None  # not pushed yet, or lost: `read` sends it or finds out
            with self._lock:
                if len(self._in_store) >= MAX_KNOWN:
                    self._in_store.clear()
                self._in_store.add(sha256)
        return self._store.sign(name)

    @property
    def address_seconds(self) -> int:
        """For how long such an address holds."""
        return self._store.settings.seconds if self._store else 0

    @property
    def origin(self) -> str:
        """'https://host' of such addresses, '' for none. Raises as `ImageStore.find_origin`."""
        return self._store.find_origin() if self._store else ""

    def is_damaged(self, image: StoredImage) -> bool:
        """Whether an image cannot be shown, as far as a look at its file tells."""
        stamp = self._stamp(image.sha256, image.suffix)
        if self._store is None and (stamp is None or stamp[1] != image.size_bytes):
            return True
        known, found = self._damaged.get(image.sha256, (None, -math.inf))
        is_old = self._store is not None and time.monotonic() - found > LOOK_AGAIN_SECONDS
        return image.sha256 in self._damaged and known == stamp and not is_old

    def _stamp(self, sha256: str, suffix: str) -> Stamp | None:
        """None where there is no file."""
        try:
            status = os.stat(image_path(self._data, sha256, suffix))
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns
