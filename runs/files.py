"""Write files and lines whole or not at all, and read them; report a full disk in one line."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from db.errors import UserError
from runs.space import explain_full_disk

TAIL_BYTES = 65_536


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


def check_new_folder(out: Path) -> None:
    """Check that a folder to be written is not there, or empty.

    Raises:
        UserError: it is there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name a new folder with --out, or remove it.")


@contextmanager
def write_folder_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends, and is removed where it raises.

    Raises:
        UserError: it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.parent / f".{out.name}.partial-{secrets.token_hex(8)}"
        try:
            partial.mkdir()  # not mkdtemp, whose folders nobody else may read, whatever the umask
            yield partial
            partial.rename(out)  # onto nothing, or onto an empty folder
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); free some disk space or name another."
        ) from error


def link_or_copy(file: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the disk knows no links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def read_json(file: Path, advice: str) -> Any:
    """What a JSON file holds.

    Args:
        advice: what to do where it cannot be read.
    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}). {advice}") from error
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}).") from error


def read_tail(file: Path, size_bytes: int = TAIL_BYTES) -> bytes:
    """Read the last bytes of a file; nothing where there is none."""
    try:
        with open(file, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - size_bytes))
            return stream.read()
    except FileNotFoundError:
        return b""


def read_last_objects(file: Path, size_bytes: int = TAIL_BYTES) -> list[dict[str, Any]]:
    """Read the JSON objects in the last whole lines of a file.

    A line that is still being written, or that a killed process left half-written, is passed over.
    """
    found = []
    for line in read_tail(file, size_bytes).split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
