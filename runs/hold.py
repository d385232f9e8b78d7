"""Keep two runs from writing into one folder, by a lock of the system, which ends with the process that holds it."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from db.errors import UserError

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_held: set[int] = set()
"""Descriptors that hold a lock: a forked process (a decoding worker) must not keep it when this one is killed."""


def _let_go() -> None:
    while _held:
        with suppress(OSError):
            os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made, for the block.

    NFS keeps such locks over machines. A file system without locks is used without, and that is logged.

    Raises:
        UserError: another run writes there, or the folder cannot be made.
    """
    with hold_file(folder / LOCK_NAME, folder):
        yield


@contextmanager
def hold_file(lock: Path, what: Path) -> Iterator[None]:
    """`hold_folder` by a file of this name; `what` is named in errors."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{what}: cannot be written ({error.strerror}); name another with --out.") from error
    _held.add(descriptor)
    try:
        _lock_or_refuse(descriptor, what)
        yield
    finally:
        if descriptor in _held:  # not in a process that was forked meanwhile
            _held.remove(descriptor)
            os.close(descriptor)


def _lock_or_refuse(descriptor: int, what: Path) -> None:
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in TAKEN:
            holder = _read_holder(descriptor)
            raise UserError(
                f"Another run writes into {what}{holder}; wait for it or stop it, or name another --out."
            ) from error
        if error.errno not in NO_LOCKS:
            raise UserError(f"{what}: cannot be locked ({error.strerror}); name another with --out.") from error
        log.warning("%s is on a file system without locks: start no other run that writes there", what)
        return
    with suppress(OSError):  # only for the message above; the disk may be full
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _read_holder(descriptor: int) -> str:
    """' (process 7 on here)', empty where it is not known."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        said = os.read(descriptor, 200).decode(errors="replace").strip()
    except OSError:
        return ""
    return f" ({said})" if said else ""


if sys.platform == "win32":
    import msvcrt

    FAR = 1 << 30
    """Windows locks bytes against reading, too; this one nobody reads."""

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
