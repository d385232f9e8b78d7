"""Give a training's progress to a tracking program as well, through accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from db.errors import UserError
from pixels.read import read_rgb


def check_tracker(tracker: str) -> None:
    """Check that the program is installed.

    Raises:
        UserError: it is not.
    """
    if tracker not in ("none", *(str(name) for name in get_available_trackers())):
        raise UserError(f"The tracker {tracker} is not installed: pip install {tracker}.")


def start_tracker(accelerator: Accelerator, tracker: str, settings: dict[str, Any]) -> None:
    """Open the tracker with a run's settings; nothing happens without one. A collective.

    Args:
        settings: name -> value; TensorBoard takes no lists or tables, so they are given as text.
    """
    if tracker == "none":
        return
    named = {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in settings.items()
    }
    accelerator.init_trackers("facereward", config=named)


def track_image(accelerator: Accelerator, tracker: str, name: str, path: Path, step: int) -> None:
    """Give the tracker a PNG, where it takes images; on the main process."""
    if tracker == "none" or not accelerator.is_main_process:
        return
    found = accelerator.get_tracker(tracker)
    if not hasattr(found, "log_images"):
        return
    image = read_rgb(path)
    if tracker == "tensorboard":
        found.log_images({name: image[None]}, step=step, dataformats="NHWC")
    else:
        found.log_images({name: [image]}, step=step)


def end_tracker(accelerator: Accelerator) -> None:
    """Let the tracker write what it holds back."""
    for tracker in accelerator.trackers:
        tracker.finish()
