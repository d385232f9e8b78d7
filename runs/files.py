"""Write files and lines whole or not at all; report a full disk in one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from runs.space import explain_full_disk


def append_line(file: Path, line: str) -> None:
    """Append a line to a file, whole or not at all.

    Raises:
        UserError: the disk is full.
    """
    content = f"{line}\n".encode()
    full = explain_full_disk(file.parent, "run the same command again", lambda: len(content))
    with full, open(file, "ab", buffering=0) as stream:
        before = stream.tell()
        try:
            if stream.write(content) < len(content):  # a full disk may take a part without an error
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        except OSError:
            stream.truncate(before)
            raise


def write_whole(file: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        UserError: the disk is full.
    """
    unfinished = file.with_name(f".{file.name}.part")
    with explain_full_disk(file.parent, "run the same command again", lambda: len(content)):
        try:
            unfinished.write_bytes(content)
            unfinished.replace(file)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise


def write_text_whole(file: Path, text: str) -> None:
    """`write_whole` of a text, in UTF-8."""
    write_whole(file, text.encode())
