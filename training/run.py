"""Run a training as a run of its command, tell how far it is, and end it where somebody asks. Loads no torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.hold import hold_folder
from runs.options import Command, O, Place
from runs.store import RunLog, RunStopped, record

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with (steps done, steps in all, values), on the main process."""


def is_first() -> bool:
    """Whether this is the first of the processes that `accelerate launch` started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def record_training(command: Command[O], options: O, place: Place) -> Iterator[tuple[RunLog | None, Progress]]:
    """Run the block as a run; of several processes the first one has it for all, the others have None.

    Gives what tells the run and the terminal of progress as well.
    """
    opened: AbstractContextManager[Any] = record(command, options, place) if is_first() else nullcontext((None, None))
    with opened as (_, run):

        def progress(done: int, total: int, values: dict[str, float]) -> None:
            if run:
                run.progress(done, total, **values)
            log.info(format_progress(done, total, values))

        yield run, progress


@contextmanager
def hold_training(out: Path) -> Iterator[None]:
    """Keep other runs out of a training's folder for the block; of several processes the first one does for all."""
    log.info("training in %s", out)
    with hold_folder(out) if is_first() else nullcontext():
        yield


def format_progress(done: int, total: int, values: dict[str, float]) -> str:
    """A progress line for a terminal: the step, then name and value."""
    names = [name for name in values if name not in ("val/n", "val/low", "val/high")]
    shown = [f"{name.rpartition('/')[2] if not name.startswith('val/') else name} {values[name]:.4g}" for name in names]
    return f"step {done:,} of {total:,}: {', '.join(shown)}"


def tell_step(
    accelerator: Accelerator, progress: Progress | None, done: int, total: int, values: dict[str, float]
) -> None:
    """Give a step's values, where it has some, to the tracker and to `progress`. A collective."""
    if values:
        accelerator.log(values, step=done)
        if progress and accelerator.is_main_process:
            progress(done, total, values)


def end_where_asked(stop: int, done: int, total: int, phase: str = "") -> None:
    """End a training that has steps left and whose checkpoint is written.

    Args:
        stop: number of the signal that asked; 0 for none.
    Raises:
        RunStopped: one did.
    """
    if stop and done < total:
        log.info("stopped after step %s%s; the same command continues", f"{done:,}", f" of {phase}" if phase else "")
        raise RunStopped(128 + stop)
