"""The database: one engine, read and write sessions, migrations on opening."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session

from db.errors import UserError

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_SECONDS = 30.0

logging.getLogger("alembic").setLevel(logging.WARNING)


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


def default_url(data: Path) -> str:
    """The URL of the SQLite database of a data folder."""
    return f"sqlite:///{data.resolve() / 'facereward.db'}"


def open_database(data: Path, url: str | None = None) -> Database:
    """Open, and create or migrate where needed, the database of a data folder.

    Args:
        data: data folder; made where it is missing.
        url: SQLAlchemy URL of another database, such as `postgresql+psycopg://user@host/name`.
    Raises:
        UserError: the URL is not understood, the database cannot be reached, or it is newer than this code.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the data folder {data}: {error.strerror}. Name another with --data.") from error
    engine = _make_engine(url or default_url(data))
    shown = engine.url.render_as_string(hide_password=True)
    try:
        _migrate(engine)
    except OperationalError as error:
        raise UserError(f"Cannot open the database {shown}: {_first_line(error)}") from error
    except DatabaseError as error:
        raise UserError(
            f"{shown} is not a database of ours: {_first_line(error)}. Name another with --data or --db."
        ) from error
    return Database(engine)


def _first_line(error: DatabaseError) -> str:
    return str(error.orig).partition("\n")[0]


def _make_engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return create_engine(parsed, pool_size=20, max_overflow=20, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        # The URL itself is not repeated: it may hold a password.
        raise UserError(
            f"The URL given with --db does not work here: {error}. "
            "Expected something like sqlite:////path/file.db or postgresql+psycopg://user:password@host/name."
        ) from error
    if parsed.database in (None, "", ":memory:"):
        raise UserError(f"{url} would be forgotten when the program ends; name a file: sqlite:////path/file.db.")
    # Our own BEGIN below replaces the driver's, hence isolation_level None.
    engine = create_engine(
        parsed, connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None}, pool_size=20, max_overflow=20
    )

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        # FULL: a commit that was acknowledged is on the disk, also when the power goes.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    return engine


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision, in one transaction that other processes wait for."""
    scripts = ScriptDirectory.from_config(_alembic_config())
    head = scripts.get_current_head()
    with engine.connect() as connection:
        if MigrationContext.configure(connection).get_current_revision() == head:
            return
    with engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7236521)")
        current = MigrationContext.configure(connection).get_current_revision()
        if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
            raise UserError(
                f"The database is at revision {current!r}, which this version of FaceReward does not know. "
                "Update FaceReward, or name another database with --data or --db."
            )
        config = _alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
