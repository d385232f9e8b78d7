"""Connect to PostgreSQL so that the client ends a wait: a server that hangs keeps no timeout of its own."""

from __future__ import annotations

import select
import time
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy.exc import DisconnectionError, InvalidatePoolError

from db.waiting import patience_seconds

T = TypeVar("T")
CONNECT_SECONDS = 5
SILENT_SECONDS = 10
"""A network that carries nothing for so long is taken for broken."""
LOCK_SECONDS = 30
"""The longest that a statement waits for another transaction's lock, whoever asks; as on SQLite."""
POLL_SECONDS = 0.1
CANCEL_SECONDS = 1.0

OPTIONS: dict[str, object] = {
    "connect_timeout": CONNECT_SECONDS,
    "tcp_user_timeout": 1000 * SILENT_SECONDS,
    "keepalives_idle": SILENT_SECONDS,
    "keepalives_interval": SILENT_SECONDS // 2,
    "keepalives_count": 2,
}
"""libpq's, each where the URL does not say otherwise."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed where one answer takes longer than `db.waiting.wait_at_most` allows."""

    def wait(self, gen: PQGen[T], interval: float = POLL_SECONDS, *args: Any, **kwargs: Any) -> T:
        """Run one exchange with the server to its end.

        Raises:
            psycopg.OperationalError: there was no answer in time; what the statement did is rolled back, unless it
                was a COMMIT that the server finishes later.
        """
        seconds = patience_seconds()
        if seconds is None:
            return super().wait(gen, interval, *args, **kwargs)
        return super().wait(self._give_up_after(gen, seconds), interval, *args, **kwargs)

    def _give_up_after(self, gen: PQGen[T], seconds: float) -> PQGen[T]:
        """The same exchange; psycopg comes by every POLL_SECONDS also where the server is silent."""
        end = time.monotonic() + seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() >= end:
                    self._abandon()
                    raise psycopg.OperationalError(f"no answer within {seconds:g} seconds")
                wanted = gen.send(ready)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _abandon(self) -> None:
        """Close the connection, after asking the server to drop the statement, should it be only slow."""
        if psycopg.capabilities.has_cancel_safe():  # an older libpq would wait for a hung server here again
            with suppress(psycopg.Error):
                self.cancel_safe(timeout=CANCEL_SECONDS)
        self.close()


def check_open(connection: psycopg.Connection[Any]) -> None:
    """See that the server has not closed a connection of the pool, as its restart does; without asking it anything.

    A question (SQLAlchemy's pool_pre_ping) would cost each request as much as a statement of its own.

    Raises:
        DisconnectionError: it was closed here; the pool then opens another.
        InvalidatePoolError: the server closed it, or something unexpected came; the pool then opens all anew.
    """
    if connection.closed:
        raise DisconnectionError("this connection was given up")
    watch = select.poll()
    watch.register(connection.pgconn.socket, select.POLLIN)
    if watch.poll(0):
        raise InvalidatePoolError("the server has closed this connection")


def connect(cargs: tuple[Any, ...], cparams: dict[str, Any]) -> BoundedConnection:
    """Open a connection as SQLAlchemy asks for it."""
    connection = BoundedConnection.connect(*cargs, **{**OPTIONS, **cparams})
    # Not among the options of the connection: a pooler in between refuses those that it does not know.
    connection.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
    connection.commit()
    return connection
