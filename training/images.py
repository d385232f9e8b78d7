"""Read image files as 8-bit RGB (see `pixels`), and check all of them before a training starts."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from db.errors import UserError
from pixels.read import ImageFault, RgbImage, check_name, decode_rgb
from runs.files import write_text_whole

log = logging.getLogger(__name__)

MAX_NAMED = 3
SECONDS_BETWEEN_LINES = 10.0


def read_image(path: Path) -> RgbImage:
    """(H, W, 3) uint8 RGB, as a browser shows it and as the file would be stored as a candidate.

    Raises:
        UserError: missing, or no image that can be used (see `pixels.read`); names the file.
    """
    return decode_image(_read_bytes(path), path)


def decode_image(content: bytes, path: Path) -> RgbImage:
    """As `read_image`, of bytes in memory; `path` stands in the errors."""
    try:
        check_name(path, content)
        return decode_rgb(content)
    except ImageFault as fault:
        raise UserError(f"{path}: {fault}. Mend it, or export or download the dataset again.") from fault


def check_images(files: Mapping[Path, str | None], known: Path | None = None) -> dict[Path, str]:
    """Read and decode every file once, in threads, so that none fails or changes silently in the middle of training.

    Args:
        files: image files, each with the SHA-256 that it must have, None where that is not known.
        known: a JSON file of what was checked before, which is kept up to date: a file that has its size and time of
            then is not read again, so that a training that is continued begins at once.
    Returns:
        the SHA-256 of each file.
    Raises:
        UserError: a file is missing, damaged or another one than the dataset says; the first few are named.
    """

    before = _read_known(known)

    def check(path: Path) -> tuple[str, str]:
        """(SHA-256, fault); the fault is empty where there is none."""
        if (seen := before.get(str(path))) and seen[:2] == _stamp(path) and files[path] in (None, seen[2]):
            return seen[2], ""
        try:
            content = _read_bytes(path)
            sha256 = hashlib.sha256(content).hexdigest()
            if files[path] not in (None, sha256):
                return sha256, f"{path}: another file than the dataset was made with (SHA-256 {sha256[:12]}…)."
            decode_image(content, path)
        except UserError as error:
            return "", str(error)
        return sha256, ""

    found: dict[Path, str] = {}
    faults: list[str] = []
    said = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, (path, (sha256, fault)) in enumerate(zip(files, pool.map(check, files), strict=True), 1):
            found[path] = sha256
            if fault:
                faults.append(fault)
            if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                log.info("%s of %s images checked", f"{done:,}", f"{len(files):,}")
    if faults:
        more = f" And {len(faults) - MAX_NAMED:,} more of {len(files):,} images." if len(faults) > MAX_NAMED else ""
        raise UserError(" ".join(faults[:MAX_NAMED]) + more)
    if known:
        before |= {str(path): [*_stamp(path), sha256] for path, sha256 in found.items()}
        known.parent.mkdir(parents=True, exist_ok=True)
        # of several processes each writes its own
        unfinished = known.with_name(f"{known.name}.{os.getpid()}")
        write_text_whole(unfinished, json.dumps(before))
        unfinished.replace(known)
    return found


def _read_known(known: Path | None) -> dict[str, list[Any]]:
    """Path -> [bytes, time of change in ns, SHA-256] of files that were checked; empty where nothing can be read."""
    try:
        found: dict[str, list[Any]] = json.loads(known.read_text(encoding="utf-8")) if known else {}
    except (OSError, ValueError):
        return {}
    return found


def _stamp(path: Path) -> list[int]:
    """[bytes, time of change in ns]; empty where the file is missing."""
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Export or download the dataset again.") from error
