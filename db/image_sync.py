"""Compare the images of a database with its object store, and upload what the store lacks; nothing is ever deleted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select

from db.errors import UserError
from db.image_store import AT_ONCE, STORE_FILE, ImageStore, is_whole, object_name, open_store
from db.images import image_path
from db.models import Image
from db.session import Database
from pixels.metadata import strip_metadata

Named = tuple[str, str, int]
"""SHA-256, suffix and bytes of an image."""


@dataclass
class Synced:
    """Images of a database and where they are."""

    images: int
    uploaded: int = 0
    faults: list[str] = field(default_factory=list)
    """A line for each image that is not whole in the store."""


def list_named(database: Database) -> list[Named]:
    """All images of a database."""
    with database.read() as session:
        rows = session.execute(select(Image.sha256, Image.suffix, Image.size_bytes).order_by(Image.id))
        return [(sha256, suffix, size_bytes) for sha256, suffix, size_bytes in rows]


def find_absent(data: Path, named: Iterable[Named]) -> list[str]:
    """The files, or objects where there is a store, that a database names and that are not there; by a list of names.

    Raises:
        StoreAwayError: the store does not answer.
    """
    store = open_store(data)
    if store is None:
        paths = [image_path(data, sha256, suffix) for sha256, suffix, _ in named]
        return [str(path) for path in paths if not path.is_file()]
    return [f"{store.url}/{object_name(sha256, suffix)}" for sha256, suffix, _ in _lacking(store, named)]


def push_images(data: Path, named: Sequence[Named]) -> Synced:
    """Upload the files that the store lacks or has in another size, and read each back.

    Raises:
        UserError: there is no store, or it is away; what was uploaded stays, and is not uploaded again.
    """
    store = require_store(data)
    synced = Synced(len(named))

    def push(one: Named) -> str:
        sha256, suffix, _ = one
        path = image_path(data, sha256, suffix)
        content = path.read_bytes() if path.is_file() else None
        if content is None or not is_whole(content, sha256):
            return f"{path} is missing or damaged, and not whole in {store.url} either; import its original again."
        if found := strip_metadata(content)[1]:  # the store's bytes go to browsers as they are
            return (
                f"{path} holds metadata ({', '.join(found)}) and stays here; take it out "
                "with `python -m annotate check --mend`, then push again."
            )
        store.write(object_name(sha256, suffix), content)
        return _check(store, one)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for fault in pool.map(push, _lacking(store, named)):
            synced.uploaded += not fault
            synced.faults += [fault] if fault else []
    return synced


def check_images(data: Path, named: Sequence[Named]) -> Synced:
    """Read every image in the store, and compare it with its SHA-256.

    Raises:
        UserError: there is no store, or it is away.
    """
    store = require_store(data)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return Synced(len(named), faults=[fault for fault in pool.map(lambda one: _check(store, one), named) if fault])


def require_store(data: Path) -> ImageStore:
    """The object store of a data folder.

    Raises:
        UserError: there is none.
    """
    store = open_store(data)
    if store is None:
        raise UserError(
            f"There is no {data / STORE_FILE}: the images are files in {data / 'images'} alone. Name a store in it: "
            'store = "s3://bucket/prefix"'
        )
    return store


def _lacking(store: ImageStore, named: Iterable[Named]) -> list[Named]:
    there = store.list_sizes()
    return [one for one in named if there.get(object_name(*one[:2])) != one[2]]


def _check(store: ImageStore, one: Named) -> str:
    """What is wrong with an image in the store; '' for nothing."""
    name = object_name(*one[:2])
    content = store.read(name)
    if content is None:
        return f"{store.url}/{name} is not there; python -m db images push"
    return "" if is_whole(content, one[0]) else f"{store.url}/{name} is not the file that was imported; remove it, push"
