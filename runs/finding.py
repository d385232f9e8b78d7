"""Define one finding of `python -m runs doctor`: what was seen of this machine, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mark = Literal["ok", "note", "care", "fault"]
"""All is well; all is well, and more can be had; works, but not as it could; does not work."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    mark: Mark
    name: str
    """'torch', 'weights sd-2.1-base': what was looked at."""
    seen: str
    todo: str = ""
    """What to do; empty where nothing has to be done."""
