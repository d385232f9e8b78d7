"""Run the commands of reward; `reward.commands` lists them."""

from __future__ import annotations

import sys

from runs.command_line import run_package


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_package("reward", "From a dataset folder to a reward model.", argv)


if __name__ == "__main__":
    sys.exit(main())
