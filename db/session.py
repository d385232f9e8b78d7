"""The database: one engine, read and write sessions, migrations on opening."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session

from db.backup import back_up
from db.engine import default_url, is_known, make_engine, migrate, needs_migration, read_revision, show_url
from db.errors import UserError
from db.models import utc_now

log = logging.getLogger(__name__)


class Database:
    """An engine with the two kinds of session that a caller needs.

    SQLite takes its write lock at the start of a write session (BEGIN IMMEDIATE), so that a session that read before
    it writes never finds that another one wrote in between.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writing = engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        # SQLite lets a second writer sleep and look again; threads of one process take turns here without sleeping.
        self._turn: AbstractContextManager[object] = (
            threading.RLock() if engine.dialect.name == "sqlite" else nullcontext()
        )

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session whose changes are thrown away."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that is committed when the block ends, and rolled back when it raises."""
        with self._turn, Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def open_database(data: Path, url: str | None = None) -> Database:
    """Open, and create or migrate where needed, the database of a data folder.

    Args:
        data: data folder; made where it is missing.
        url: SQLAlchemy URL of another database, such as `postgresql+psycopg://user@host/name`.
    Raises:
        UserError: the URL is not understood, the database cannot be reached, or it is newer than this code.
    """
    try:
        # photos of people, the hashes of passwords: for its owner alone, unless a person opens it to others
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the data folder {data}: {error.strerror}. Name another with --data.") from error
    engine = make_engine(url or default_url(data))
    shown = show_url(engine.url)
    try:
        if needs_migration(engine):
            _back_up_before_migrating(engine, data)
            migrate(engine)
    except OperationalError as error:
        raise UserError(f"Cannot open the database {shown}: {_first_line(error)}") from error
    except DatabaseError as error:
        raise UserError(
            f"{shown} is not a database of ours: {_first_line(error)}. Name another with --data or --db."
        ) from error
    return Database(engine)


def _back_up_before_migrating(engine: Engine, data: Path) -> None:
    with engine.connect() as connection:
        revision = read_revision(connection)
    if revision is None or not is_known(revision):  # it is new, or migrate refuses it
        return
    path = data / "backups" / f"before-migration-from-{revision}-{utc_now():%Y-%m-%dT%H%M%S}.db"
    back_up(engine, path)
    log.warning(
        "The database is brought from revision %s to this version's; as it was it is kept in %s.", revision, path
    )


def _first_line(error: DatabaseError) -> str:
    return str(error.orig).partition("\n")[0]
