"""Run rows, run folders and progress lines.

A run's folder is `DATA/runs/<id>/`: `config.json`, `progress.jsonl` (one JSON object a line, appended and flushed),
`log.txt` where the run was launched from a page, and whatever the run leaves behind.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db.errors import UserError
from db.models import Run, RunState, utc_now
from db.session import Database, open_database

LIVE_STATES = (RunState.queued, RunState.running, RunState.stopping)
VERSION = "0.1.0"
TAIL_BYTES = 65_536
MAX_ERROR_LENGTH = 500
CLOCK_STEP_SECONDS = 2.0


class RunStopped(SystemExit):
    """Somebody asked this process to stop; raised in it by SIGTERM, so that open work is rolled back.

    An exit, as KeyboardInterrupt is one: no `except Exception` on the way swallows it, and no traceback is printed.
    """


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
        """What the run found, for the page that started it: `result.json`, there whole or not at all."""
        unfinished = self.folder / "result.json.part"
        unfinished.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, self.folder / "result.json")


def without_nan(value: Any) -> Any:
    """NaN, which JSON does not have, as null; throughout."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


@cache
def code_version() -> str:
    """The version and, in a git checkout, its commit: '0.1.0+3f2a9c1', with '-dirty' where files are changed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return VERSION
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or not our checkout
        return VERSION
    return f"{VERSION}+{commit}"


def run_folder(data: Path, run_id: int) -> Path:
    """The folder of a run."""
    return data / "runs" / str(run_id)


def add_run(database: Database, data: Path, kind: str, config: dict[str, Any], person_id: int | None = None) -> int:
    """A queued run and its folder, both or neither; returns its id."""
    with database.write() as session:
        run = Run(kind=kind, config=config, code_version=code_version(), person_id=person_id)
        session.add(run)
        session.flush()
        folder = run_folder(data, run.id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return run.id


@contextmanager
def open_run(
    database: Database, data: Path, kind: str, config: dict[str, Any], run_id: int | None = None
) -> Iterator[RunLog]:
    """Run the block as a run: running while it lasts, then finished, stopped or failed with the reason.

    SIGTERM ends the block by RunStopped, where the block runs on the main thread; signals reach no other one.

    Args:
        config: what was asked, as JSON values.
        run_id: the queued run that this process was launched for; None makes a new one.
    Raises:
        UserError: there is no queued run of that id.
    """
    if run_id is None:
        run_id = add_run(database, data, kind, config)
    _claim(database, run_id)
    previous = _on_sigterm(_raise_stopped)
    state, reason = RunState.failed, None
    try:
        yield RunLog(run_id, run_folder(data, run_id))
        state = RunState.finished
    except (RunStopped, KeyboardInterrupt):
        state = RunState.stopped
        raise
    except BaseException as error:
        reason = error_line(error)
        raise
    finally:
        _on_sigterm(signal.SIG_IGN)  # being asked once more must not keep the last state from being written
        try:
            end_run(database, run_id, state, reason)
        finally:
            _on_sigterm(previous)


@contextmanager
def open_database_run(
    data: Path, url: str | None, kind: str, config: dict[str, Any], run_id: int | None = None
) -> Iterator[RunLog]:
    """`open_run` in the database of a data folder, or in that of the URL: for packages that know runs and not db.

    Raises:
        UserError: the database cannot be opened, or there is no queued run of that id.
    """
    database = open_database(data, url)
    try:
        with open_run(database, data, kind, config, run_id) as run:
            yield run
    finally:
        database.close()


def _claim(database: Database, run_id: int) -> None:
    """Make this process the one that runs a queued run; of two that try, one succeeds."""
    process = psutil.Process()
    with database.write() as session:
        claimed = session.execute(
            update(Run)
            .where(Run.id == run_id, Run.state == RunState.queued)
            .values(state=RunState.running, pid=process.pid, pid_started=process.create_time(), started_at=utc_now())
        )
        if claimed.rowcount != 1:  # type: ignore[attr-defined]
            raise UserError(f"Run {run_id} is not waiting to be started; leave --run out to start a new one.")


_SignalAction = Callable[[int, FrameType | None], Any] | int | None


def _on_sigterm(action: _SignalAction) -> _SignalAction:
    """Set what SIGTERM does and return what it did; nothing off the main thread, where Python forbids it."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, signal.SIG_DFL if action is None else action)


def _raise_stopped(_signal: int, _frame: FrameType | None) -> None:
    raise RunStopped(128 + signal.SIGTERM)


def error_line(error: BaseException) -> str:
    """One line that says why: a UserError's message, of others the type as well."""
    message = str(error).strip().partition("\n")[0]
    if not isinstance(error, UserError):
        message = f"{type(error).__name__}: {message}".removesuffix(": ")
    return message[:MAX_ERROR_LENGTH]


def end_run(database: Database, run_id: int, state: RunState, error: str | None = None) -> None:
    """Write the last state of a run that is still live."""
    with database.write() as session:
        session.execute(
            update(Run)
            .where(Run.id == run_id, Run.state.in_(LIVE_STATES))
            .values(state=state, error=error, ended_at=utc_now())
        )


def latest_run(session: Session, kind: str) -> Run | None:
    """The run of that kind that was asked for last."""
    return session.scalar(select(Run).where(Run.kind == kind).order_by(Run.id.desc()).limit(1))


def read_progress(data: Path, run_id: int) -> dict[str, Any] | None:
    """The last whole progress line of a run, None before the first.

    A line that is still being written, or that a killed process left half-written, is passed over.
    """
    for line in reversed(_read_tail(run_folder(data, run_id) / "progress.jsonl").split(b"\n")[:-1]):
        try:
            progress = json.loads(line)
        except ValueError:
            continue
        if isinstance(progress, dict):
            return progress
    return None


def last_log_line(data: Path, run_id: int) -> str | None:
    """The last line that a launched run printed, None where it printed nothing."""
    lines = _read_tail(run_folder(data, run_id) / "log.txt").decode("utf-8", errors="replace").split("\n")
    return next((line.strip()[:MAX_ERROR_LENGTH] for line in reversed(lines) if line.strip()), None)


def _read_tail(file: Path) -> bytes:
    """The last TAIL_BYTES of a file, nothing where there is none."""
    try:
        with open(file, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL_BYTES))
            return stream.read()
    except FileNotFoundError:
        return b""


def is_alive(run: Run) -> bool:
    """Whether the very process that a run was started as still lives on this machine: same pid, same start time."""
    if run.pid is None:
        return False
    try:
        process = psutil.Process(run.pid)
        # The start time is reckoned from the clock, which may have been set right in between.
        same = run.pid_started is None or abs(process.create_time() - run.pid_started) < CLOCK_STEP_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def reap_lost(database: Database, data: Path) -> list[int]:
    """End the live runs whose process is gone and return their ids. Queued runs not yet given a process are left.

    One that died before it opened its run was refused (a wrong option, a missing package): failed, with the last line
    that it printed. One that was killed while running is lost.
    """
    with database.read() as session:
        live = session.scalars(
            select(Run).where(Run.state.in_(LIVE_STATES), Run.pid.is_not(None)).order_by(Run.id)
        ).all()
    gone = [run for run in live if not is_alive(run)]
    for run in gone:
        said = last_log_line(data, run.id)
        if run.state is RunState.stopping:
            end_run(database, run.id, RunState.stopped)
        elif run.started_at is None:
            end_run(database, run.id, RunState.failed, said or "the process ended before the run began")
        else:
            last = f"; its last line: {said}" if said else ""
            end_run(database, run.id, RunState.lost, f"the process ended without saying why{last}")
    return [run.id for run in gone]
