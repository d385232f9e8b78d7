"""What the command lines of jobs share: their options, and errors as one line."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import db.command
from runs.space import is_disk_full, say_room


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """--data, --db and --run, as every command takes them."""
    db.command.add_database_options(parser)
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)  # given by runs.launch


def run_command(action: Callable[[], None]) -> int:
    """Exit code of a command, as `db.command.run_command` gives it; that of Ctrl+C where it was pressed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # pyiqa brings it; it warns of an extra that we never use
    try:
        return db.command.run_command(action)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 128 + signal.SIGINT
    except OSError as error:
        if not is_disk_full(error):
            raise
        where = Path(error.filename if isinstance(error.filename, str) else ".").absolute()
        sys.stderr.write(f"error: {where}: the disk is full: {say_room(where)}, then run again.\n")
        return 2
