"""Read what a tuned restorer's folder records: what it was tuned from, and how. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from db.errors import UserError
from runs.files import read_json

RECORD_FILE = "trained.json"
TRAINED_FILE = "trained.safetensors"
Kind = Literal["control", "lora"]
"""What was trained: a whole ControlNet, or adapters."""
MANY_STEPS = ("tiny", "diffbir-v1", "diffbir-v2.1")


def is_tuned(folder: Path) -> bool:
    """Whether a training of a restorer wrote it."""
    return (folder / RECORD_FILE).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """The `trained.json` of a folder.

    Raises:
        UserError: missing, or not one.
    """
    path = folder / RECORD_FILE
    record = read_json(path, "Give a folder that a training of a restorer wrote.")
    kinds, rank = get_args(Kind), record.get("rank") if isinstance(record, dict) else None
    if not isinstance(rank, int) or record.get("kind") not in kinds or not isinstance(record.get("restorer"), str):
        raise UserError(f"{path}: lacks restorer, kind ({' or '.join(kinds)}) or rank of the trained part.")
    return dict(record)


def find_base(asked: str) -> str | None:
    """What a restorer was tuned from, as its training was asked for it; None of one that is no tuned folder.

    Raises:
        UserError: its record cannot be read.
    """
    folder = Path(asked).expanduser()
    return str(read_record(folder)["restorer"]) if is_tuned(folder) else None


def find_root(asked: str) -> str:
    """The published restorer that one began as, or itself."""
    while (base := find_base(asked)) is not None:
        asked = base
    return asked


def takes_many_steps(asked: str) -> bool:
    """Whether a restorer that can be tuned goes from noise to the image in many steps.

    Args:
        asked: as `refl.restorers.load.load_restorer` takes it; a folder is told by what its training began with.
    Raises:
        UserError: its record cannot be read.
    """
    root = find_root(asked)
    return Path(root).expanduser().is_dir() or root.partition(":")[0] in MANY_STEPS  # a folder is a tiny restorer's
