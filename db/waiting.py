"""How long the database may keep whoever asks it waiting: for ever in a command, some seconds in a request."""

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
