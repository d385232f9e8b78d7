"""`--weights DIR`: the folder of published weight files, one flag for all commands that load such. Loads no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

WEIGHTS_FOLDER = "weights"
"""Inside the data folder: where files are looked for without the flag."""


def add_weights_flag(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """`--weights DIR`."""
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="folder of published weight files (default: DATA/weights)"
    )


def choose_weights_folder(named: Path | None, data: Path) -> Path:
    """The folder that was named, or the data folder's own."""
    return named.expanduser() if named else data / WEIGHTS_FOLDER
