"""Run the commands of the database: `python -m db backup FILE | restore FILE | images push | images check`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from db.backup import back_up, restore
from db.command import add_database_options, run_command
from db.errors import UserError
from db.image_store import open_store
from db.image_sync import check_images, find_absent, list_named, push_images, require_store
from db.session import open_database

SHOWN = 3
"""Missing or damaged images that are named."""


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
    storing = commands.add_parser("images", help="compare the images with the object store of DIR/images.toml")
    storing.add_argument(
        "what",
        choices=("push", "check"),
        help="push: upload what the store lacks, and read it back; check: read all of it, and compare the hashes",
    )
    storing.set_defaults(command=_sync_images)
    for command in (making, taking, storing):
        add_database_options(command)
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    return run_command(lambda: args.command(args))


def _back_up(args: argparse.Namespace) -> None:
    database = open_database(args.data, args.db)
    made = back_up(database.engine, args.file)
    print(f"{made.path}: {_format_rows(made.rows)}; read back and whole.")
    if (store := open_store(args.data)) is not None:
        print(f"Images are not in it: they are in {store.url}.")
        return
    print(
        f"Image files are not in it. None ever changes: copy {args.data / 'images'} after the backup, such as by rsync."
    )


def _restore(args: argparse.Namespace) -> None:
    rows = restore(args.file, args.data, args.db)
    print(f"Restored from {args.file}: {_format_rows(rows)}.")
    named = list_named(open_database(args.data, args.db))
    if missing := find_absent(args.data, named):
        shown = ", ".join(missing[:SHOWN])
        print(f"{len(missing):,} of {len(named):,} image files are missing, such as {shown}: copy them back.")


def _sync_images(args: argparse.Namespace) -> None:
    store = require_store(args.data)
    named = list_named(open_database(args.data, args.db))
    if args.what == "push":
        synced = push_images(args.data, named)
        there = synced.images - len(synced.faults)
        print(f"{store.url}: {synced.uploaded:,} images uploaded and read back, {there:,} of {synced.images:,} there.")
    else:
        synced = check_images(args.data, named)
        print(f"{store.url}: {synced.images - len(synced.faults):,} of {synced.images:,} images are whole.")
    if synced.faults:
        raise UserError(f"{len(synced.faults):,} images are not whole there:\n" + "\n".join(synced.faults[:SHOWN]))


def _format_rows(rows: dict[str, int]) -> str:
    return ", ".join(f"{rows[table]:,} {table} rows" for table in ("judgment", "pair", "image", "person"))


if __name__ == "__main__":
    sys.exit(main())
