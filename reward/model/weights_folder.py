"""Define `--weights DIR`, the folder of published weight files, for all commands that load such. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from runs.options import Flag

WEIGHTS_FOLDER = "weights"
"""Inside the data folder: where files are looked for without the flag."""

WeightsFolder = Annotated[
    Path | None,
    Flag(terminal_only=True),
    Field(description="Folder of published weight files (default: DATA/weights)"),
]


def choose_weights_folder(named: Path | None, data: Path) -> Path:
    """The folder that was named, or the data folder's own."""
    return named.expanduser() if named else data / WEIGHTS_FOLDER
