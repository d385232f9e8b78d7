"""Run the commands of annotate; `annotate.commands` lists them."""

from __future__ import annotations

import sys

from runs.command_line import run_package


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_package("annotate", "From photos to a labelled dataset.", argv)


if __name__ == "__main__":
    sys.exit(main())
