"""Tell restorers of many steps from those of one by what is asked for. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path

MANY_STEPS = ("tiny", "diffbir-v1", "diffbir-v2.1")


def takes_many_steps(asked: str) -> bool:
    """Whether a restorer that can be tuned goes from noise to the image in many steps.

    Args:
        asked: as `refl.restorers.load.load_restorer` takes it; a folder is told by what its training began with.
    """
    folder = Path(asked).expanduser()
    record = folder / "trained.json"
    if record.is_file():
        return takes_many_steps(str(json.loads(record.read_text(encoding="utf-8")).get("restorer", "")))
    return folder.is_dir() or asked.partition(":")[0] in MANY_STEPS  # a folder without it is a tiny restorer's
