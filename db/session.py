"""Open the database: one engine, read and write sessions, migrations on opening."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, text, update
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError
from sqlalchemy.orm import Session

from db.backup import back_up
from db.engine import default_url, is_known, make_engine, migrate, needs_migration, read_revision, show_url
from db.errors import UnavailableError, UserError
from db.models import Base, Project, utc_now
from db.waiting import patience_seconds

log = logging.getLogger(__name__)

PROBE_BYTES = 2**20
"""A disk with less room than this takes no answers for long."""


class Database:
    """An engine with the two kinds of session that a caller needs.

    SQLite takes its write lock at the start of a write session (BEGIN IMMEDIATE), so that a session that read before
    it writes never finds that another one wrote in between.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writing = engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        is_server = engine.dialect.name == "postgresql"
        self._looking = engine.execution_options(isolation_level="AUTOCOMMIT") if is_server else engine
        # SQLite lets a second writer sleep and look again; threads of one process take turns here without sleeping.
        self._turn = threading.RLock() if engine.dialect.name == "sqlite" else None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session whose changes are thrown away."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def look_up(self) -> Iterator[Connection]:
        """A connection for a single SELECT: on PostgreSQL without a transaction, which would be two more exchanges."""
        with self._looking.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that is committed when the block ends, and rolled back when it raises.

        Raises:
            UnavailableError: inside `db.waiting.wait_at_most`, where others write for longer than that.
        """
        with self._take_turn(), Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def _take_turn(self) -> Iterator[None]:
        seconds = patience_seconds()
        if self._turn is not None and not self._turn.acquire(timeout=-1 if seconds is None else seconds):
            raise UnavailableError(f"others have been writing for {seconds:g} seconds")
        try:
            yield
        finally:
            if self._turn is not None:
                self._turn.release()

    def analyze(self) -> None:
        """Let PostgreSQL count what its tables hold, as it does by itself only about a minute after they were filled.

        Till then it plans the queue's statements as if the tables were empty, and walks over all pairs with each
        answer: 70 ms of 2,000 pairs rather than 0.1.
        """
        if self.engine.dialect.name == "postgresql":
            tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
            with self.look_up() as connection:
                connection.execute(text(f"ANALYZE {tables}"))

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


def check_writable(database: Database, data: Path) -> None:
    """See that answers can be stored, before anybody gives one.

    Raises:
        UserError: the data folder or the database can only be read, or the disk is full.
    """
    probe = data / f".probe-{secrets.token_hex(4)}"
    try:
        try:
            probe.write_bytes(bytes(PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"The data folder {data} cannot be written ({error.strerror}). Make it writable or free some disk space, "
            "or name another with --data."
        ) from error
    shown = database.engine.url.render_as_string(hide_password=True)
    try:
        with database.write() as session:  # changes nothing, but needs what a change needs
            session.execute(update(Project).where(Project.id == -1).values(updated_at=utc_now()))
    except DBAPIError as error:
        raise UserError(
            f"The database {shown} cannot be written: {_first_line(error)}. Make it writable, or end what writes it."
        ) from error


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


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).partition("\n")[0]
