"""Keep the stored images in an object store too: `images.toml` in the data folder names it.

    store = "s3://bucket/prefix"    # any address that fsspec knows, such as gs://… or file:///…
    serve = "redirect"              # browsers fetch images from the store; "app" (default): the app sends them
    seconds = 300                   # for which such an address holds
    [options]                       # of fsspec's filesystem, such as endpoint_url; no keys

The store holds what `DIR/images` holds, under the same names (`ab/<sha256>.png`), and the folder becomes a cache of it.
Nothing in the store is ever deleted by us. Only `db.images` and what serves images know that there is one.
"""

from __future__ import annotations

import hashlib
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from db.errors import UnavailableError, UserError, first_fault
from db.waiting import patience_seconds

STORE_FILE = "images.toml"
AT_ONCE = 8
"""Objects that are moved at the same time: each waits for the network, not for this machine."""
LEFT_ALONE_SECONDS = 5.0
"""For which requests are not kept waiting for a store that did not answer."""
_AWAY: dict[str, float] = {}
"""Such a store -> the time at which that ends."""
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Protocol -> the package that fsspec needs for it."""

T = TypeVar("T")


class StoreAwayError(UserError, UnavailableError):
    """The object store did not answer, or refused: one line for a command, 503 for a request, which is sent again."""


class StoreSettings(BaseModel):
    """Content of `images.toml`, see the module's docstring."""

    model_config = ConfigDict(extra="forbid", strict=True)

    store: str = Field(pattern=r"^[a-z0-9]+://")
    serve: Literal["app", "redirect"] = "app"
    seconds: int = Field(default=300, ge=10, le=24 * 3600)
    options: dict[str, Any] = {}


@dataclass(frozen=True)
class ImageStore:
    """The place of an object store where images lie; names are relative to it."""

    settings: StoreSettings
    filesystem: Any
    """fsspec's."""
    root: str

    @property
    def url(self) -> str:
        """The address for messages."""
        return self.settings.store

    def read(self, name: str) -> bytes | None:
        """The bytes of an object; None where there is none.

        Raises:
            StoreAwayError: no answer, also within the bound of `db.waiting.wait_at_most`, or the whole store is not
                there, such as a share that is not mounted.
        """
        content: bytes | None = self._ask(lambda: self.filesystem.cat_file(self._place(name)))
        if content is None and not self._ask(lambda: self.filesystem.exists(self.root)):
            raise StoreAwayError(
                f"There is nothing at {self.url}. Is it mounted, is there such a bucket? A new store is "
                "filled by `python -m db images push`."
            )
        return content

    def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none. Raises as `read`."""
        found: dict[str, Any] | None = self._ask(lambda: self.filesystem.info(self._place(name)))
        return None if found is None else int(found["size"])

    def write(self, name: str, content: bytes) -> None:
        """Store an object, and see that all of it arrived.

        Raises:
            StoreAwayError: it did not; half an object may be there, which is found by its size and written anew.
        """
        self._ask(lambda: self.filesystem.pipe_file(self._place(name), content))
        arrived = self.size(name)
        if arrived is None:
            raise StoreAwayError(f"{self.url}/{name} did not arrive. See that there is such a bucket, and run again.")
        if arrived != len(content):
            raise StoreAwayError(f"{self.url}/{name}: {arrived} of {len(content)} bytes arrived; run again.")

    def list_sizes(self) -> dict[str, int]:
        """Name -> bytes of all objects. Raises as `read`."""
        found: dict[str, dict[str, Any]] = self._ask(lambda: self.filesystem.find(self.root, detail=True)) or {}
        return {place.removeprefix(self.root).lstrip("/"): int(facts["size"]) for place, facts in found.items()}

    def sign(self, name: str) -> str | None:
        """An address at which anybody gets the object for `settings.seconds`; None unless it is to be served so.

        Raises:
            StoreAwayError: it cannot be signed, such as without credentials.
        """
        if self.settings.serve == "app":
            return None
        address = self._ask(lambda: self.filesystem.sign(self._place(name), expiration=self.settings.seconds))
        return str(address)

    def find_origin(self) -> str:
        """'https://host' of the signed addresses, for the pages' content policy; '' where there are none.

        Raises:
            UserError: the filesystem can sign none.
        """
        try:
            parts = urlsplit(self.sign("probe") or "")
        except NotImplementedError as error:
            raise UserError(
                f"{self.url} has no signed addresses for serve = 'redirect' in {STORE_FILE}; remove that line, and the "
                "app sends the images."
            ) from error
        return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""

    def _place(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _ask(self, work: Callable[[], T]) -> T | None:
        """The filesystem's answer; None where there is no such object.

        Requests wait in vain for an absent store one at a time, or they would take the places of all others.
        """
        seconds, until = patience_seconds(), _AWAY.get(self.url)
        if seconds is not None and until is not None:
            if time.monotonic() < until:
                raise StoreAwayError(
                    f"The image store {self.url} did not answer just before; try again in some seconds."
                )
            _AWAY[self.url] = time.monotonic() + seconds  # this one looks whether it is back
        try:
            answer = work() if seconds is None else _threads().submit(work).result(seconds)
        except FileNotFoundError:
            answer = None
        except NotImplementedError:
            raise
        except Exception as error:  # the libraries of the clouds have errors of their own, of no common kind
            _AWAY[self.url] = time.monotonic() + LEFT_ALONE_SECONDS
            said = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(": ")
            raise StoreAwayError(
                f"The image store {self.url} does not answer ({said:.200}). Look at its address and credentials, or "
                "try again later; nothing is lost."
            ) from error
        _AWAY.pop(self.url, None)
        return answer


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads that wait for the store in place of a request, which gives up in time where they cannot."""
    return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="image-store")


def object_name(sha256: str, suffix: str) -> str:
    """Name of an image in a store, which is its path below `DIR/images`."""
    return f"{sha256[:2]}/{sha256}{suffix}"


def is_whole(content: bytes | None, sha256: str) -> bool:
    """Whether these are the bytes that the hash promises."""
    return content is not None and hashlib.sha256(content).hexdigest() == sha256


def open_store(data: Path) -> ImageStore | None:
    """The object store of a data folder; None where its images are files alone.

    Raises:
        UserError: `images.toml` is not understood, or the package for its kind of store is not installed.
    """
    path = data / STORE_FILE
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return None
    settings = _read_settings(path, stamp)
    from fsspec.core import url_to_fs  # here: a quarter of a second, for those alone who have a store

    protocol = settings.store.partition("://")[0]
    # Listings must not be kept: another process adds to what was listed. Folders are only needed by files.
    options = {"use_listings_cache": False, **({"auto_mkdir": True} if protocol == "file" else {}), **settings.options}
    try:
        filesystem, root = url_to_fs(settings.store, **options)
    except ImportError as error:
        package = PACKAGES.get(protocol, f"fsspec's package for {protocol}")
        raise UserError(
            f"{path}: {protocol}:// needs {package}, which is not installed: pip install {package}"
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {settings.store} cannot be opened ({error}).") from error
    return ImageStore(settings, filesystem, str(root).rstrip("/"))


@cache
def _read_settings(path: Path, stamp: int) -> StoreSettings:  # noqa: ARG001  a changed file is read anew
    try:
        return StoreSettings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}. Expected: store = 's3://bucket/prefix'") from error
