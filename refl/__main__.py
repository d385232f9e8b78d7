"""The command line of refl: `python -m refl degrade | restore | pretrain | train | evaluate | ablate | weights`."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from refl.evaluate.command import add_evaluate_command
from refl.faces.degrade_command import add_degrade_command
from refl.pretrain.command import add_pretrain_command
from refl.restore.command import add_restore_command
from refl.restorers.command import add_weights_command
from refl.tune.ablate import add_ablate_command
from refl.tune.command import add_train_command
from runs.command_line import add_common_options, run_command


def main(argv: list[str] | None = None) -> int:
    """Run one command; a UserError, or a database that fails, becomes one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m refl", description="Restore faces, and tune what restores them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_degrade_command(commands)
    add_restore_command(commands)
    add_pretrain_command(commands)
    add_train_command(commands)
    add_evaluate_command(commands)
    add_ablate_command(commands)
    add_weights_command(commands)
    for command in commands.choices.values():
        add_common_options(command)
    args = parser.parse_args(argv)
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("refl", "reward", "training"):  # the reward model's part in a training too
        logging.getLogger(name).setLevel(logging.INFO if first else logging.WARNING)
    return run_command(lambda: args.command(args))


if __name__ == "__main__":
    sys.exit(main())
