"""The command line of reward: `python -m reward train | evaluate | score`."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from reward.evaluate.command import add_evaluate_command
from reward.score.command import add_score_command
from reward.train.command import add_train_command
from runs.command_line import add_common_options, run_command


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
    for name in ("reward", "training"):
        logging.getLogger(name).setLevel(logging.INFO if first else logging.WARNING)
    return run_command(lambda: args.command(args))


if __name__ == "__main__":
    sys.exit(main())
