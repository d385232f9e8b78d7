"""Bound the wait for the database: a command waits for ever, a request some seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_patience: ContextVar[float | None] = ContextVar("patience", default=None)


@contextmanager
def wait_at_most(seconds: float) -> Iterator[None]:
    """Bound each wait for the database inside the block, in the threads that it starts by anyio too.

    A wait is one for a lock, for a connection, or for the answer to one statement: what exceeds it raises
    `db.errors.UnavailableError` or SQLAlchemy's OperationalError, and nothing of the transaction is stored.
    """
    before = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(before)


def patience_seconds() -> float | None:
    """The bound of the block that this runs in; None where there is none."""
    return _patience.get()
