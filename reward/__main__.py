"""The command line of reward: `python -m reward train | evaluate | score`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from sqlalchemy.exc import OperationalError

from reward.evaluate_command import add_evaluate_command
from reward.score_command import add_score_command
from reward.train_command import add_train_command
from runs import UserError


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """--data, --db and --run, as every command takes them."""
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder (default: ./data)")
    parser.add_argument(
        "--db",
        default=os.environ.get("FACEREWARD_DB"),
        help="database URL (default: SQLite in the data folder, or the environment's FACEREWARD_DB)",
    )
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)  # given by runs.launch


def main(argv: list[str] | None = None) -> int:
    """Run one command; a UserError, or a database that fails, becomes one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m reward", description="From a dataset folder to a reward model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_train_command(commands)
    add_evaluate_command(commands)
    add_score_command(commands)
    for command in commands.choices.values():
        add_common_options(command)
    args = parser.parse_args(argv)
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("reward").setLevel(logging.INFO if first else logging.WARNING)
    try:
        args.command(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OperationalError as error:
        said = str(error.orig).partition("\n")[0]
        print(f"error: The database failed: {said}. Free disk space if it is full, then run again.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
