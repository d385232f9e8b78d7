"""Make engines of SQLite and PostgreSQL, and migrate what they open."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from db.errors import UserError
from db.waiting import patience_seconds

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_SECONDS = 30.0
POOL_TIMEOUT_SECONDS = 5.0
"""The longest wait for a connection while all are in use."""
REFUSED = "The URL given with --db does not work here"
EXAMPLES = "Expected something like sqlite:////path/file.db or postgresql+psycopg://user:password@host/name."

logging.getLogger("alembic").setLevel(logging.WARNING)


def default_url(data: Path) -> str:
    """The URL of the SQLite database of a data folder."""
    return sqlite_url(data.resolve() / "facereward.db")


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file, whose name may hold what means something in a URL: % ? #."""
    return URL.create("sqlite", database=str(file)).render_as_string()


def has_password(url: str) -> bool:
    """Whether a database URL holds a password, before the host or among what follows a '?'; False for no URL."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return False
    return parsed.password is not None or any("password" in name for name in parsed.query)


def show_url(url: URL) -> str:
    """A database URL for messages: its passwords as ***."""
    hidden = {name: "***" for name in url.query if "password" in name}
    return url.update_query_dict(hidden).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def make_engine(url: str) -> Engine:
    """An engine whose connections lose nothing that was committed.

    Raises:
        UserError: the URL is not understood.
    """
    # What SQLAlchemy says is not repeated, nor is the URL: parts of a password may be in both.
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise UserError(f"{REFUSED}: it is not written as a URL. {EXAMPLES}") from error
    if "@" in (parsed.host or ""):
        raise UserError(
            f"{REFUSED}: it has more than one @. Write those of a password as %40 (: as %3A, / as %2F, % as %25)."
        )
    if parsed.get_backend_name() != "sqlite":
        try:
            return _make_server_engine(parsed)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise UserError(f"{REFUSED}: there is no driver {parsed.drivername!r} here. {EXAMPLES}") from error
    if parsed.database in (None, "", ":memory:"):
        raise UserError(f"{url} would be forgotten when the program ends; name a file: sqlite:////path/file.db.")
    # Our own BEGIN below replaces the driver's, hence isolation_level None.
    engine = create_engine(
        parsed,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None},
        pool_size=20,
        max_overflow=60,  # they are only open files, and none of the app's threads shall wait for one
        pool_timeout=POOL_TIMEOUT_SECONDS,
    )

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        # FULL: a commit that was acknowledged is on the disk, also when the power goes.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        seconds = patience_seconds() or BUSY_TIMEOUT_SECONDS
        if connection.info.get("busy_timeout", BUSY_TIMEOUT_SECONDS) != seconds:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={seconds * 1000:.0f}")
            connection.info["busy_timeout"] = seconds
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    return engine


def _make_server_engine(url: URL) -> Engine:
    """An engine of PostgreSQL; its connections bound their waits (see `db.postgres`)."""
    ours = url.get_driver_name() == "psycopg"
    engine = create_engine(
        url, pool_size=20, max_overflow=20, pool_pre_ping=not ours, pool_timeout=POOL_TIMEOUT_SECONDS
    )
    if ours:
        from db import postgres  # here: who uses SQLite needs no psycopg

        @event.listens_for(engine, "checkout")
        def check(connection: Any, _record: Any, _proxy: Any) -> None:
            postgres.check_open(connection)

        @event.listens_for(engine, "do_connect")
        def connect(_dialect: Any, _record: Any, cargs: Any, cparams: Any) -> Any:
            return postgres.connect(cargs, cparams)

    return engine


def alembic_config() -> Config:
    """Alembic's settings: where the migrations lie."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def read_revision(connection: Connection) -> str | None:
    """The revision that a database is at; None where it has no tables of ours."""
    return MigrationContext.configure(connection).get_current_revision()


def needs_migration(engine: Engine) -> bool:
    """Whether the database is not at the revision that this code makes and reads."""
    with engine.connect() as connection:
        return read_revision(connection) != ScriptDirectory.from_config(alembic_config()).get_current_head()


def is_known(revision: str) -> bool:
    """Whether this code has the revision."""
    scripts = ScriptDirectory.from_config(alembic_config())
    return revision in {script.revision for script in scripts.walk_revisions()}


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to a revision, in one transaction that other processes wait for.

    Raises:
        UserError: the database is newer than this code.
    """
    with engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")  # another process's migration may take minutes
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7236521)")
        current = read_revision(connection)
        if current is not None and not is_known(current):
            raise UserError(
                f"The database is at revision {current!r}, which this version of FaceReward does not know. "
                "Update FaceReward, or name another database with --data or --db."
            )
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
