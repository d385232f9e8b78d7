"""Whether there is room on the disk for what a run writes."""

from __future__ import annotations

import shutil
from pathlib import Path

MIN_FREE_BYTES = 2**30
"""With less free space than this, nothing is started."""


def say_if_full(data: Path) -> str | None:
    """'0.4 GiB free, 1 GiB needed' where the data folder's disk has too little room; None where it has enough."""
    free = shutil.disk_usage(data).free
    if free >= MIN_FREE_BYTES:
        return None
    return f"{free / 2**30:.1f} GiB free, {MIN_FREE_BYTES / 2**30:g} GiB needed"
