"""Give every command line its --data and --db, and its errors one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import OperationalError

from db.errors import UserError


def add_database_options(parser: argparse.ArgumentParser) -> None:
    """--data and --db, as every command takes them."""
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder (default: ./data)")
    parser.add_argument(
        "--db",
        default=os.environ.get("FACEREWARD_DB"),
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
