"""Define `--weights DIR`, the folder of published weight files, for all commands that load such. Loads no torch."""

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


def choose_weights_folder(args: argparse.Namespace) -> Path:
    """The folder that was named, or the data folder's own."""
    named: Path | None = args.weights
    return named.expanduser() if named else Path(args.data) / WEIGHTS_FOLDER
