"""What every package's command line shares: its common options, and errors as one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import OperationalError

from db.errors import UserError
from runs.space import is_disk_full, say_room


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """--data, --db and --run, as every command takes them."""
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder (default: ./data)")
    parser.add_argument(
        "--db",
        default=os.environ.get("FACEREWARD_DB"),
        help="database URL (default: SQLite in the data folder, or the environment's FACEREWARD_DB)",
    )
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)  # given by runs.launch


def run_command(action: Callable[[], None]) -> int:
    """Exit code of a command: 0, or 2 with one line where a UserError, a full disk or a failing database ended it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # pyiqa brings it; it warns of an extra that we never use
    try:
        action()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        if not is_disk_full(error):
            raise
        where = Path(error.filename if isinstance(error.filename, str) else ".").absolute()
        sys.stderr.write(f"error: {where}: the disk is full: {say_room(where)}, then run again.\n")
        return 2
    except OperationalError as error:
        said = str(error.orig).partition("\n")[0]
        sys.stderr.write(
            f"error: The database failed: {said}. What was stored before stays; free disk space if it is full, then "
            "run again.\n"
        )
        return 2
    return 0
