"""Check that the disk has room for what a run writes, and explain where it has not."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from db.errors import UserError

MIN_FREE_BYTES = 2**30
"""With less free space than this, nothing is started."""
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_WORDS = ("no space left", "quota exceeded", "file write failed", "unexpected pos", "requested and")
"""Of a full disk in the words of torch.save, safetensors and NumPy, whose errors have no number."""


def say_if_full(data: Path) -> str | None:
    """'0.4 GiB free, 1 GiB needed' where the data folder's disk has too little room; None where it has enough."""
    free = shutil.disk_usage(data).free
    if free >= MIN_FREE_BYTES:
        return None
    return f"{free / 2**30:.1f} GiB free, {MIN_FREE_BYTES / 2**30:g} GiB needed"


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or somebody's share of it, is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(word in str(error).lower() for word in FULL_WORDS)


@contextmanager
def explain_full_disk(folder: Path, then: str, count_needed: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Say of a full disk in the block in one line where it is, what is left of it and what is needed.

    Args:
        folder: that is written.
        then: what to do once there is room, such as "run the same command again".
        count_needed: gives how many bytes the block writes, 0 where that is not known; called once the disk is full.
    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except Exception as error:  # safetensors' own errors are of no kind but this
        if isinstance(error, UserError) or not is_disk_full(error):
            raise
        raise UserError(f"{folder}: the disk is full: {say_room(folder, count_needed())}; then {then}.") from error


def say_room(folder: Path, needed_bytes: int = 0) -> str:
    """'300 KiB are free, about 20.0 MiB are needed. Free some disk space' of the disk of a folder."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    needed = f", about {_format_size(needed_bytes)} are needed" if needed_bytes else ""
    return f"{_format_size(shutil.disk_usage(there).free)} are free{needed}. Free some disk space"


def _format_size(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB" if size_bytes >= 2**20 else f"{math.ceil(size_bytes / 2**10)} KiB"
