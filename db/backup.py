"""Back up a database while people judge, and restore it: one SQLite file, whatever database it came from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, Table, func, insert, select, text

import db.studies  # noqa: F401 - tables are copied too
from db.engine import default_url, make_engine, migrate, read_revision, show_url, sqlite_url
from db.errors import UserError
from db.models import Base, utc_now

ROWS_AT_ONCE = 2_000
SHARE_FREE = 1.2
"""Of the database's own size, that a backup needs on the disk."""


@dataclass(frozen=True)
class Backup:
    """Content of a backup file."""

    path: Path
    rows: dict[str, int]
    """Table -> rows."""


def back_up(engine: Engine, path: Path) -> Backup:
    """Write the whole database to one SQLite file, as it was at one moment; others go on writing meanwhile.

    The file is read back before it gets its name: SQLite's own check of its pages and references, and from PostgreSQL
    every row as well.

    Args:
        path: the new file; for a folder, a file in it that is named after the present second (UTC).
    Raises:
        UserError: the file exists, the disk has no room, or what was read back is not what was written.
    """
    path = path.expanduser()
    if path.is_dir():
        path = path / f"facereward-{utc_now():%Y-%m-%dT%H%M%SZ}.db"
    if path.exists():
        raise UserError(f"{path} exists and is left as it is; name another file, or a folder for a name with the time.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial(path) as partial:
            if engine.dialect.name == "sqlite":
                _copy_sqlite(Path(str(engine.url.database)), partial)
            else:
                _copy_rows_out(engine, partial)
            rows = _check(partial)
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"Cannot write the backup {path}: {error}. Nothing was left there.") from error
    return Backup(path, rows)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A name beside `path` that only its owner may read; renamed when all went well, else removed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))  # it holds the hashes of passwords
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        for leftover in (partial, *(partial.with_name(partial.name + end) for end in ("-journal", "-wal", "-shm"))):
            leftover.unlink(missing_ok=True)


def _copy_sqlite(source: Path, target: Path) -> None:
    """Copy one snapshot, by SQLite's own backup; a copy of the file alone would lack what the -wal file holds."""
    _require_space(target, source.stat().st_size)
    # read-only would not do: the first reader of a -wal file sets up its index
    with closing(sqlite3.connect(source, timeout=30)) as read, closing(sqlite3.connect(target)) as write:
        read.backup(write, pages=-1)  # all pages under one read lock, which keeps no writer from a -wal file
        write.execute("PRAGMA journal_mode=DELETE")  # so that the backup is one file


def _copy_rows_out(engine: Engine, target: Path) -> None:
    """Copy every row of one snapshot into a SQLite file of the same revision, and compare what is read back."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as read, read.begin():
        read.exec_driver_sql("SET TRANSACTION READ ONLY")
        read.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")  # SQLite's column keeps the hour and drops the zone
        _require_space(target, int(read.scalar(text("SELECT pg_database_size(current_database())")) or 0))
        found = MetaData()
        found.reflect(read)  # not the models: it may be of an earlier revision
        with _sqlite_file(target) as copy:
            migrate(copy, read_revision(read) or "head")
            with copy.begin() as write:
                there = MetaData()
                there.reflect(write)
                ours = there.tables.keys() - {"alembic_version"}  # others may keep their tables in the database too
                tables = [table for table in found.sorted_tables if table.name in ours]
                for table in tables:
                    _copy_table(read, table, write, there.tables[table.name])
                _compare(read, tables, write, [there.tables[table.name] for table in tables])


@contextmanager
def _sqlite_file(path: Path) -> Iterator[Engine]:
    engine = make_engine(sqlite_url(path.resolve()))
    try:
        yield engine
        with engine.connect() as connection:
            connection.exec_driver_sql("COMMIT")  # the journal cannot change inside a transaction
            connection.exec_driver_sql("PRAGMA journal_mode=DELETE")  # one file
    finally:
        engine.dispose()


def _require_space(target: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed_bytes * SHARE_FREE:
        raise UserError(
            f"A backup needs {needed_bytes * SHARE_FREE / 1e9:.1f} GB and {target.parent} has {free / 1e9:.1f} GB "
            "free; name a file on another disk."
        )


def _check(path: Path) -> dict[str, int]:
    """Table -> rows of a SQLite database; raises where its pages or references are not whole."""
    with closing(sqlite3.connect(path)) as connection:
        said = connection.execute("PRAGMA integrity_check").fetchone()[0]
        loose = connection.execute("PRAGMA foreign_key_check").fetchone()
        if said != "ok" or loose:
            fault = said if said != "ok" else f"a reference without its row: {loose}"
            raise UserError(f"{path} is not whole: {fault}. Take another backup.")
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "judgment" not in names or "alembic_version" not in names:
            raise UserError(f"{path} is not a backup of ours: it has no judgments.")
        ours = sorted(names - {"alembic_version"} - {name for name in names if name.startswith("sqlite_")})
        return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in ours}


def restore(path: Path, data: Path, url: str | None = None) -> dict[str, int]:
    """Restore a backup as the database of a data folder, or into an empty database.

    A backup of an earlier version is brought to the present revision on the way; the file itself stays as it is.

    Returns:
        Table -> rows.
    Raises:
        UserError: it is not a whole backup, or there is a database already: nothing is ever replaced.
    """
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file. Name one that `python -m db backup` wrote.")
    engine = make_engine(url or default_url(data))
    to_sqlite = engine.dialect.name == "sqlite"
    target = Path(str(engine.url.database))
    if to_sqlite and target.exists():
        raise UserError(f"{target} exists and is left as it is; stop the app and move it away, or name another --data.")
    try:
        data.mkdir(parents=True, exist_ok=True)
        if to_sqlite:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _partial(target) as partial:
                return _copy_migrated(path, partial)
        with TemporaryDirectory() as folder:
            copied = Path(folder) / path.name
            rows = _copy_migrated(path, copied)
            _copy_rows_in(copied, engine)
            return rows
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"Cannot restore {path}: {error}. Nothing was left behind.") from error
    finally:
        engine.dispose()


def _copy_migrated(path: Path, target: Path) -> dict[str, int]:
    """Copy a backup and bring it to the present revision; gives table -> rows."""
    _check(path)
    _copy_sqlite(path, target)
    with _sqlite_file(target) as engine:
        migrate(engine)
    return _check(target)


def _copy_rows_in(path: Path, engine: Engine) -> None:
    """Copy every row into an empty database, all of it or nothing."""
    tables = Base.metadata.sorted_tables
    migrate(engine)
    with _sqlite_file(path) as copy, copy.connect() as read, engine.begin() as write:
        if any(write.execute(select(table).limit(1)).first() for table in tables):
            shown = show_url(engine.url)
            raise UserError(f"{shown} is not empty and is left as it is; name an empty database with --db.")
        for table in tables:
            _copy_table(read, table, write, table)
            if "id" in table.c:  # else the next row would get a number that is taken
                numbers = func.pg_get_serial_sequence(f'"{table.name}"', "id")
                write.execute(select(func.setval(numbers, func.coalesce(func.max(table.c.id), 0) + 1, False)))
        _compare(read, tables, write, tables)


def _copy_table(read: Connection, source: Table, write: Connection, target: Table) -> None:
    names = [column.name for column in source.c if column.computed is None]
    rows = read.execution_options(yield_per=ROWS_AT_ONCE).execute(select(*(source.c[name] for name in names)))
    for part in rows.partitions():
        write.execute(insert(target), [dict(zip(names, row, strict=True)) for row in part])


def _compare(read: Connection, sources: Sequence[Table], write: Connection, targets: Sequence[Table]) -> None:
    """Raise where a table's rows, read back, are not those that were read."""
    for source, target in zip(sources, targets, strict=True):
        if _digest(read, source) != _digest(write, target):
            raise UserError(f"What was read back of the table {source.name!r} is not what was written; try again.")


def _digest(connection: Connection, table: Table) -> tuple[int, int]:
    """(rows, the sum of their hashes), the same on SQLite and PostgreSQL and in every order."""
    names = sorted(column.name for column in table.c)
    count = total = 0
    for row in connection.execution_options(yield_per=ROWS_AT_ONCE).execute(select(*(table.c[name] for name in names))):
        count += 1
        digest = hashlib.blake2b(json.dumps([_plain(value) for value in row], sort_keys=True).encode()).digest()
        total = (total + int.from_bytes(digest)) % 2**512
    return count, total


def _plain(value: Any) -> Any:
    """A value as JSON has it; times in UTC, for SQLite gives them back without a zone."""
    if not isinstance(value, datetime):
        return value
    return (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)).isoformat()
