"""Rebuild the command that started this process, so that a run from a terminal can be continued like any other."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runs.devices import own_device

COMMON = ("--data", "--db", "--run")
"""Options of every command: where the data is, no part of what a run does; a database URL may hold a password."""


def own_command(kind: str) -> dict[str, Any]:
    """Columns of a run that this process makes itself: arguments, cwd, launcher and, for trainings, the device.

    Nothing where the process was not started as `python -m <kind> …`, such as inside a test or a notebook.
    """
    words = kind.split()[1:]
    if Path(sys.argv[0]).name != "__main__.py" or sys.argv[1 : 1 + len(words)] != words:
        return {}
    arguments = drop_common(sys.argv[1 + len(words) :])
    processes, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    return {
        "arguments": arguments,
        "cwd": str(Path.cwd()),
        "device": own_device(kind, arguments),
        "launcher": {"processes": processes, "machines": processes // here} if processes > 1 else {},
    }


def drop_common(arguments: Sequence[str]) -> list[str]:
    """The arguments without --data, --db and --run and their values."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*kept, word, *words]
        if word in COMMON:
            next(words, None)
        elif not word.startswith(tuple(f"{option}=" for option in COMMON)):
            kept.append(word)
    return kept
