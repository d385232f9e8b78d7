"""Look at runs, and at whatever else takes its time, until they are what they should be."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from db.models import Run, RunState
from db.session import Database
from runs.store import LIVE_STATES, reap_lost

if TYPE_CHECKING:
    from ui.context import Context

LIMIT_SECONDS = 300
"""How long any test waits for what must come, be it a page, a run or a process: far longer than it takes where eight
busy processes share two cores. Only what fails waits so long."""


def get_run(database: Database, run_id: int) -> Run:
    """The run's row as it is now."""
    with database.read() as session:
        return session.get_one(Run, run_id)


def wait_until(condition: Callable[[], object], pause_seconds: float = 0.05) -> None:
    """Look again and again until it holds; an AssertionError where it never does."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause_seconds)


def wait_for_state(database: Database, run_id: int, *states: RunState) -> Run:
    """The run once it is in one of these states."""
    wait_until(lambda: get_run(database, run_id).state in states)
    return get_run(database, run_id)


def wait_for_end(database: Database, data: Path, run_id: int) -> Run:
    """The run once it has ended, in whatever way."""

    def has_ended() -> bool:
        reap_lost(database, data)
        return get_run(database, run_id).state not in LIVE_STATES

    wait_until(has_ended)
    return get_run(database, run_id)


def wait_for(context: Context, run_id: int) -> Run:
    """The run once it has ended, in whatever way, as pages see it."""
    return wait_for_end(context.database, context.data, run_id)
