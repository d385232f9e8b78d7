"""Check and store many image files at a time: in processes, since threads of small images wait for each other.

`CheckedFiles` maps a file's name, relative to the import's folder, to its probe. Converted bytes are never kept, so
that a million files fit in memory.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import psutil
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from db.errors import UserError
from db.images import Probe, has_hash, image_path, probe_image, write_image
from db.models import Image
from db.session import Database
from pixels.read import PEAK_BYTES
from runs.image_folders import normalize_name
from runs.signals import ignore_signals

CHUNK_FILES = 32
FILES_PER_WORKER = 200
"""Starting a process costs about as much as checking this many files."""
BATCH_ROWS = 500
CGROUP = Path("/sys/fs/cgroup")

T = TypeVar("T")
R = TypeVar("R")
CheckedFiles = dict[str, Probe]
NewImages = dict[str, tuple[str, Probe]]
"""SHA-256 to (file, probe)."""


@contextmanager
def open_pool(workers: int | None, n_files: int) -> Iterator[Executor | None]:
    """Worker processes for that many files; None where one is enough: the work is then done in this process.

    Args:
        workers: how many; None for one per core, fewer for few files. Never more than the memory holds.
    Raises:
        UserError: fewer than 1, or one was ended from outside.
    """
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers: give 1 or more.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Any file may be as large as is read at all.
    most = max(1, _free_memory_bytes() // PEAK_BYTES)
    count = min(most, workers or max(1, min(cores, n_files // FILES_PER_WORKER)))
    if count == 1:
        yield None
        return
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=start_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError("A worker process was ended from outside, perhaps for memory; try --workers 1.") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _free_memory_bytes() -> int:
    """Return the memory this process may still take, of the machine and of its container (cgroup v2)."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - used))
    return free


def start_worker() -> None:
    """A worker ends with the import and not before it: signals to the process group are the parent's to answer."""
    ignore_signals()
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # A killed parent does not close the queue that its workers read from; they would wait for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def batches(items: Iterable[T], size: int = BATCH_ROWS) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _map_chunks(pool: Executor | None, work: Callable[[list[T]], R], items: Iterable[T]) -> Iterator[R]:
    chunks = batches(items, CHUNK_FILES)
    yield from map(work, chunks) if pool is None else pool.map(work, chunks)


def check_files(
    pool: Executor | None, root: Path, names: Iterable[str], step: Callable[[int], None]
) -> tuple[CheckedFiles, dict[str, str]]:
    """Read and decode every file: (the fit ones with their probes, the others with the reason)."""
    fit: CheckedFiles = {}
    unfit: dict[str, str] = {}
    for results in _map_chunks(pool, partial(_check_chunk, root), names):
        for name, result in results:
            if isinstance(result, Probe):
                fit[name] = result
            else:
                unfit[name] = result
        step(len(results))
    return fit, unfit


def _check_chunk(root: Path, names: list[str]) -> list[tuple[str, Probe | str]]:
    results: list[tuple[str, Probe | str]] = []
    for name in names:
        path = root / name
        try:
            if path.exists() and not path.is_file():
                raise UserError("not a file")
            if not path.exists() and (other := _find_other_case(root, name)):
                raise UserError(f"is not there, but {other} is: the case of letters counts")
            results.append((name, replace(probe_image(path), converted=None)))
        except UserError as error:
            results.append((name, str(error).removeprefix(f"{path}: ")))
    return results


def _find_other_case(root: Path, name: str) -> str | None:
    """The file that Windows or a Mac would take for the one of this name; None where there is none."""
    found = ""
    for part in name.split(os.sep):
        try:
            entries = os.listdir(root / found)
        except OSError:
            return None
        same = [entry for entry in entries if normalize_name(entry).casefold() == normalize_name(part).casefold()]
        if not same:
            return None
        found = os.path.join(found, part if part in same else same[0])
    return found


def select_new(database: Database, data: Path, files: CheckedFiles) -> NewImages:
    """The images whose files are not in the data folder, or damaged there, each once."""
    new: NewImages = {}
    with database.read() as session:
        for batch in batches(files.items()):
            stored = find_images(session, [probe for _, probe in batch])
            for name, probe in batch:
                known = stored_id(stored, probe) is not None and probe.sha256 not in stored  # as other bytes
                if not known and not has_hash(image_path(data, probe.sha256, probe.suffix), probe.sha256):
                    new.setdefault(probe.sha256, (name, probe))
    return new


def store_files(pool: Executor | None, data: Path, root: Path, new: NewImages, step: Callable[[int], None]) -> None:
    """Put the files of new images in place.

    Raises:
        UserError: a file changed since it was checked, or the disk is full; some may be in place then.
    """
    for count in _map_chunks(pool, partial(_store_chunk, data, root), new.values()):
        step(count)


def _store_chunk(data: Path, root: Path, files: list[tuple[str, Probe]]) -> int:
    for name, probe in files:
        store_file(data, root / name, probe)
    return len(files)


def store_file(data: Path, path: Path, probe: Probe) -> None:
    """Put one image in place, converting the file once more where it has to be converted."""
    if probe.conversion is not None:
        again = probe_image(path)
        if again.sha256 != probe.sha256:
            raise UserError(f"{path}: changed while it was being imported; import again")
        probe = again
    write_image(data, probe, path)


def remove_unused(database: Database, data: Path, new: NewImages) -> None:
    """Remove the files of images that have no row: what a failed import leaves."""
    with database.write() as session:  # so that no other import adds its rows between the look and the removal
        for batch in batches(new.values()):
            used = find_images(session, [probe for _, probe in batch])
            for _, probe in batch:
                if probe.sha256 not in used:
                    image_path(data, probe.sha256, probe.suffix).unlink(missing_ok=True)


def find_images(session: Session, probes: Sequence[Probe]) -> dict[str, int]:
    """The stored images of these files: SHA-256, and that of the imported file where it was converted, to id."""
    found: dict[str, int] = {}
    hashes = {value for probe in probes for value in (probe.sha256, probe.original_sha256) if value is not None}
    for chunk in batches(sorted(hashes)):
        rows = session.execute(
            select(Image.id, Image.sha256, Image.original_sha256).where(
                or_(Image.sha256.in_(chunk), Image.original_sha256.in_(chunk))
            )
        )
        for image_id, sha256, original_sha256 in rows:
            found[sha256] = image_id
            if original_sha256 is not None:
                found.setdefault(original_sha256, image_id)
    return found


def stored_id(stored: Mapping[str, int], probe: Probe) -> int | None:
    """The id of a file's image among those that `find_images` found."""
    # The file's own hash first: another version of Pillow may convert the same file to other bytes.
    by_file = stored.get(probe.original_sha256 or probe.sha256)
    return stored.get(probe.sha256) if by_file is None else by_file
