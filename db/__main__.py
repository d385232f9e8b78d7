"""Run the commands of the database: `python -m db backup FILE | restore FILE`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from sqlalchemy import select

from db.backup import back_up, restore
from db.command import add_database_options, run_command
from db.images import image_path
from db.models import Image
from db.session import open_database

SHOWN = 3
"""Missing image files that are named."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; a UserError, or a database that fails, becomes one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m db", description="Back up the database while people judge, and restore it."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    making = commands.add_parser("backup", help="write the database to one file, checked by reading it back")
    making.add_argument("file", type=Path, metavar="FILE", help="a new file, or a folder for a name with the time")
    making.set_defaults(command=_back_up)
    taking = commands.add_parser("restore", help="make a backup the database of a data folder, or of an empty --db")
    taking.add_argument("file", type=Path, metavar="FILE", help="what `python -m db backup` wrote")
    taking.set_defaults(command=_restore)
    for command in (making, taking):
        add_database_options(command)
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    return run_command(lambda: args.command(args))


def _back_up(args: argparse.Namespace) -> None:
    database = open_database(args.data, args.db)
    made = back_up(database.engine, args.file)
    print(f"{made.path}: {_format_rows(made.rows)}; read back and whole.")
    print(
        f"Image files are not in it. None ever changes: copy {args.data / 'images'} after the backup, such as by rsync."
    )


def _restore(args: argparse.Namespace) -> None:
    rows = restore(args.file, args.data, args.db)
    print(f"Restored from {args.file}: {_format_rows(rows)}.")
    with open_database(args.data, args.db).read() as session:
        named = session.execute(select(Image.sha256, Image.suffix)).all()
    files = [image_path(args.data, sha256, suffix) for sha256, suffix in named]
    if missing := [file for file in files if not file.is_file()]:
        shown = ", ".join(str(file) for file in missing[:SHOWN])
        print(f"{len(missing):,} of {len(files):,} image files are missing, such as {shown}: copy them back.")


def _format_rows(rows: dict[str, int]) -> str:
    return ", ".join(f"{rows[table]:,} {table} rows" for table in ("judgment", "pair", "image", "person"))


if __name__ == "__main__":
    sys.exit(main())
