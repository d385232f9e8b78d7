"""Run the commands of runs; `runs.commands` lists them."""

from __future__ import annotations

import sys

from runs.command_line import run_package


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    about = "Start long jobs, watch them, stop and continue them: what the Train and Runs pages do."
    return run_package("runs", about, argv)


if __name__ == "__main__":
    sys.exit(main())
