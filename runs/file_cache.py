"""Cache parsed small files until their size or mtime changes, and read what may be damaged in them."""

from __future__ import annotations

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_FILES = 4_096
_kept: OrderedDict[tuple[Path, str], tuple[tuple[int, int], Any]] = OrderedDict()


def read_file(path: Path, parse: Callable[[Path], Any]) -> Any:
    """Return what `parse` makes of a file, None where it is absent or unreadable. Do not change the result.

    Args:
        parse: a named function; one file may be read by several.
    """
    key = path, parse.__qualname__
    try:
        status = os.stat(path)
        signature = status.st_mtime_ns, status.st_size
        known = _kept.get(key)
        if known is None or known[0] != signature:
            known = _kept[key] = signature, parse(path)
            while len(_kept) > MAX_FILES:
                _kept.popitem(last=False)
        return known[1]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file, empty where there is none."""
    found = read_file(path, _parse_json)
    return found if isinstance(found, dict) else {}


def read_part(found: dict[str, Any], *names: str) -> dict[str, Any]:
    """The object at these names, one inside the other; {} where there is none, or something else."""
    for name in names:
        inner = found.get(name)
        found = inner if isinstance(inner, dict) else {}
    return found


def read_number(found: dict[str, Any], name: str) -> float | None:
    """The finite number of that name; None where there is none, or something else."""
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= sys.float_info.max else None


def _parse_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
