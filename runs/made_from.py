"""List the paths that a run is made from and writes: as its command recorded them, of older runs as a guess."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from db.models import Run


def list_inputs(run: Run) -> list[str]:
    """What a run is made from, paths absolute; of a run of an older version all that its settings mention."""
    if run.inputs is None:
        return list(guess_paths([run.config, run.arguments or []], run.cwd))
    return [recorded["value"] for recorded in run.inputs]


def list_named(run: Run) -> list[str]:
    """What a run is made from and what it writes, paths absolute."""
    return [*list_inputs(run), *(recorded["value"] for recorded in run.outputs or [])]


def guess_paths(value: Any, cwd: str | None = None) -> Iterator[str]:
    """All that may be a path in JSON values, absolute: whole texts, and what follows each = in them.

    For rows that recorded none: a text that merely mentions a path is taken for a path too.
    """
    if isinstance(value, str):
        while "/" in value and "\0" not in value:
            yield os.path.abspath(os.path.join(cwd or "", os.path.expanduser(value)))
            value = value.partition("=")[2]
    elif isinstance(value, dict):
        for item in value.values():
            yield from guess_paths(item, cwd)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from guess_paths(item, cwd)
