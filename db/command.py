"""Give every command line its --data and --db, and its errors one line."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError

from db.engine import has_password
from db.errors import UserError

DATABASE_VARIABLE = "FACEREWARD_DB"
SECRET_VARIABLES = (DATABASE_VARIABLE, "PGPASSWORD")
"""Variables of the environment that may hold the database's password."""
_HIDING = threading.RLock()


class DatabaseUrl(argparse.Action):
    """--db URL, with a warning where it shows a password to everybody who lists this machine's processes."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:  # noqa: ARG002
        if has_password(values):
            sys.stderr.write(
                "warning: others on this machine can read the password in --db in the list of processes; give the URL "
                f"as {DATABASE_VARIABLE} in the environment, or leave the password out and keep it in ~/.pgpass.\n"
            )
        namespace.db = values


@contextmanager
def hidden_secrets() -> Iterator[None]:
    """Take SECRET_VARIABLES out of this process's environment while a foreign program starts that keeps what it sees.

    Slurm can store the environment of a submitted job where others may read it, and a Ray cluster outlives its start.
    """
    with _HIDING:
        hidden = {name: os.environ.pop(name) for name in SECRET_VARIABLES if name in os.environ}
        try:
            yield
        finally:
            os.environ.update(hidden)


def add_database_options(parser: argparse.ArgumentParser) -> None:
    """--data and --db, as every command takes them."""
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder (default: ./data)")
    parser.add_argument(
        "--db",
        action=DatabaseUrl,
        metavar="URL",
        default=os.environ.get(DATABASE_VARIABLE),
        help="database URL (default: SQLite in the data folder, or the environment's FACEREWARD_DB)",
    )


def run_command(action: Callable[[], None]) -> int:
    """Exit code of a command: 0, or 2 with one line where a UserError, a full disk or a failing database ended it."""
    try:
        action()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OperationalError as error:
        said = str(error.orig).partition("\n")[0]
        sys.stderr.write(
            f"error: The database failed: {said}. What was stored before stays; free disk space if it is full, then "
            "run again.\n"
        )
        return 2
    return 0
