"""Run rows, run folders and progress lines.

A run's folder is `DATA/runs/<id>/`: `config.json`, `progress.jsonl` (one JSON object a line, appended and flushed),
`log.txt` where the run was launched from a page, and whatever the run leaves behind.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from sqlalchemy import select, update

from db.errors import UserError
from db.models import Run, RunState, utc_now
from db.session import Database

LIVE_STATES = (RunState.queued, RunState.running, RunState.stopping)
VERSION = "0.1.0"


class RunStopped(Exception):
    """Somebody asked this process to stop; raised in it by SIGTERM, so that open work is rolled back."""


class RunLog:
    """What a running command writes: progress lines into its folder."""

    def __init__(self, run_id: int, folder: Path) -> None:
        self.run_id = run_id
        self.folder = folder

    def progress(self, done: int, total: int | None = None, **values: Any) -> None:
        """Append one progress line: steps done, of how many where known, and any JSON values."""
        line = {"time": time.time(), "done": done, "total": total, **values}
        with open(self.folder / "progress.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def write_result(self, values: dict[str, Any]) -> None:
        """What the run found, for the page that started it: `result.json`."""
        (self.folder / "result.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@cache
def code_version() -> str:
    """The version and, in a git checkout, its commit: '0.1.0+3f2a9c1', with '-dirty' where files are changed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return VERSION
    result = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{VERSION}+{result.stdout.strip()}" if result.returncode == 0 and result.stdout.strip() else VERSION


def run_folder(data: Path, run_id: int) -> Path:
    """The folder of a run."""
    return data / "runs" / str(run_id)


def add_run(database: Database, data: Path, kind: str, config: dict[str, Any], person_id: int | None = None) -> int:
    """A queued run and its folder; returns its id."""
    with database.write() as session:
        run = Run(kind=kind, config=config, code_version=code_version(), person_id=person_id)
        session.add(run)
        session.flush()
        run_id = run.id
    folder = run_folder(data, run_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return run_id


@contextmanager
def open_run(
    database: Database, data: Path, kind: str, config: dict[str, Any], run_id: int | None = None
) -> Iterator[RunLog]:
    """Run the block as a run: running while it lasts, then finished, stopped or failed with the reason.

    Args:
        config: what was asked, as JSON values.
        run_id: the queued run that this process was launched for; None makes a new one.
    Raises:
        UserError: there is no queued run of that id.
    """
    if run_id is None:
        run_id = add_run(database, data, kind, config)
    process = psutil.Process()
    with database.write() as session:
        claimed = session.execute(
            update(Run)
            .where(Run.id == run_id, Run.state == RunState.queued)
            .values(state=RunState.running, pid=process.pid, pid_started=process.create_time(), started_at=utc_now())
        )
        if claimed.rowcount != 1:  # type: ignore[attr-defined]
            raise UserError(f"Run {run_id} is not waiting to be started; leave --run out to start a new one.")
    previous = signal.signal(signal.SIGTERM, _raise_stopped)
    try:
        yield RunLog(run_id, run_folder(data, run_id))
    except (RunStopped, KeyboardInterrupt):
        end_run(database, run_id, RunState.stopped)
        raise
    except BaseException as error:
        end_run(database, run_id, RunState.failed, f"{error}" or type(error).__name__)
        raise
    else:
        end_run(database, run_id, RunState.finished)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _raise_stopped(_signal: int, _frame: FrameType | None) -> None:
    raise RunStopped("stopped on request")


def end_run(database: Database, run_id: int, state: RunState, error: str | None = None) -> None:
    """Write the last state of a run that is still live."""
    with database.write() as session:
        session.execute(
            update(Run)
            .where(Run.id == run_id, Run.state.in_(LIVE_STATES))
            .values(state=state, error=error, ended_at=utc_now())
        )


def read_progress(data: Path, run_id: int) -> dict[str, Any] | None:
    """The last whole progress line of a run, None before the first."""
    try:
        with open(run_folder(data, run_id) / "progress.jsonl", "rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 65536))
            lines = [line for line in stream.read().split(b"\n")[:-1] if line.startswith(b"{")]
    except FileNotFoundError:
        return None
    last: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return last


def is_alive(run: Run) -> bool:
    """Whether the very process that a run was started as still lives: same pid and same start time."""
    if run.pid is None:
        return False
    try:
        process = psutil.Process(run.pid)
        same = run.pid_started is None or abs(process.create_time() - run.pid_started) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def reap_lost(database: Database) -> list[int]:
    """Mark live runs whose process is gone as lost; returns their ids. Queued runs without a process are left."""
    with database.read() as session:
        gone = [
            run.id
            for run in session.scalars(select(Run).where(Run.state.in_(LIVE_STATES)))
            if run.pid and not is_alive(run)
        ]
    for run_id in gone:
        end_run(database, run_id, RunState.lost, "the process ended without saying why; see its log")
    return gone
