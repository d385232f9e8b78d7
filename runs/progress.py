"""Show how far a command is: a bar in a terminal, and the run's progress lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tqdm import tqdm

from runs.store import RunLog

PROGRESS_SECONDS = 1.0
"""Between two lines of a run."""


class Show(Protocol):
    """Called with the steps done, the steps in all where known, and JSON values to record."""

    def __call__(self, done: int, total: int, **values: Any) -> None: ...


@contextmanager
def show_progress(run: RunLog | None, stage: str, unit: str = "steps") -> Iterator[Show]:
    """A bar where somebody looks, and a progress line of the run each second and at the end.

    Args:
        run: None where there is none.
        stage: what is being done: 'measuring'.
    """
    last = 0.0
    with tqdm(desc=stage, unit=f" {unit}", disable=not sys.stderr.isatty()) as bar:

        def show(done: int, total: int, **values: Any) -> None:
            nonlocal last
            bar.total = total
            bar.update(done - bar.n)
            if run and (time.monotonic() - last >= PROGRESS_SECONDS or done == total):
                last = time.monotonic()
                run.progress(done, total, stage=stage, **values)

        yield show
