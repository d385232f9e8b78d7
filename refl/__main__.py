"""Run the commands of refl; `refl.commands` lists them."""

from __future__ import annotations

import logging
import os
import sys

from runs.command_line import run_package


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("refl", "reward", "training"):  # the reward model's part in a training too
        logging.getLogger(name).setLevel(logging.INFO if first else logging.WARNING)
    return run_package("refl", "Restore faces, and tune what restores them.", argv)


if __name__ == "__main__":
    sys.exit(main())
