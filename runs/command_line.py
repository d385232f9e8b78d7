"""Run the commands of a package: parse the options, run, and say errors in one line."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import db.command
from db.session import open_database
from licences.terms import is_commercial, set_commercial
from runs.hub import fetch_inputs
from runs.licences import find_licences, of_project, refuse_non_commercial, wants_commercial
from runs.options import COMMERCIAL_FLAG, Command, O, Place, add_parser, list_commands, read_namespace
from runs.space import is_disk_full, say_room


def run_package(package: str, about: str, argv: list[str] | None = None) -> int:
    """Run one command of `python -m PACKAGE`: its options from the command line, then the command.

    Returns:
        The exit code: 2 for a UserError, or a disk or database that fails, said in one line.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=about)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in list_commands(package):
        add_parser(commands, command)
    for subparser in dict.fromkeys(commands.choices.values()):  # one with an older name is there twice
        add_common_options(subparser)
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    first = os.environ.get("RANK", "0") == "0"  # of the processes of a training, whose lines are the same
    for name in ("reward", "refl", "training"):
        logging.getLogger(name).setLevel(logging.INFO if first else logging.WARNING)

    def run() -> None:
        given = fetch_inputs(args.command, vars(args))
        options = args.command.settle(read_namespace(args.command, argparse.Namespace(**given)), args.data)
        place = Place(args.data, args.db, args.run)
        if args.commercial:
            set_commercial()
        if package != "runs":  # what is queued is checked there
            check_licences(args.command, options, place)
        args.command.run(options, place)

    return run_command(run)


def check_licences(command: Command[O], options: O, place: Place) -> None:
    """Refuse what forbids commercial use, where that is wanted, before anything is loaded or written.

    What the process then loads nonetheless, such as a metric that it chooses itself, is forbidden too.

    Raises:
        UserError: the licence of something that the command uses or is made from forbids it.
    """
    photos = []
    if place.db is not None or (place.data / "facereward.db").is_file():
        database = open_database(place.data, place.db)
        try:
            with database.read() as session:
                if wants_commercial(session):
                    set_commercial()
                photos = of_project(session)
        finally:
            database.close()
    if is_commercial():
        refuse_non_commercial(find_licences(command.uses(options) + command.inputs(options), place.data) + photos)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """--data, --db, --commercial and --run, as every command takes them."""
    db.command.add_database_options(parser)
    parser.add_argument(COMMERCIAL_FLAG, action="store_true", help="refuse what forbids commercial use, by name")
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
