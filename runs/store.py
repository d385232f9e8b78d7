"""Store run rows, run folders and progress lines.

A run's folder is `DATA/runs/<id>/`: `config.json`, `progress.jsonl` (one JSON object a line, appended and flushed),
`log.txt` where the run was launched from a page, and whatever the run leaves behind.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from sqlalchemy import String, and_, cast, or_, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db.errors import UserError
from db.models import Run, RunState, utc_now
from db.session import Database, open_database
from licences.terms import Licensed, sort_strictest
from runs import licences
from runs.file_cache import read_json
from runs.files import append_line, read_last_objects, read_tail, write_text_whole
from runs.options import Command, O, Place
from runs.own_command import own_command
from runs.signals import SIGNALS, give_back, listen
from runs.slurm import is_done

log = logging.getLogger(__name__)

LIVE_STATES = (RunState.queued, RunState.running, RunState.stopping)
MAKERS = ("annotate export", "reward construct", "reward train", "reward set", "refl train", "refl pretrain")
"""Kinds of runs whose folder others are made from: it keeps the licences of what it was made of."""
VERSION = "0.1.0"
MAX_ERROR_LENGTH = 500
CLOCK_STEP_SECONDS = 2.0


class RunStopped(SystemExit):
    """Somebody asked this process to stop; raised in it by a signal, so that open work is rolled back.

    An exit, as KeyboardInterrupt is one: no `except Exception` on the way swallows it, and no traceback is printed.
    """


class RunLog:
    """What a running command writes: progress lines into its folder."""

    def __init__(self, run_id: int, folder: Path) -> None:
        self.run_id = run_id
        self.folder = folder
        self.licences: list[Licensed] = []
        """Of what the run uses and is made from."""

    def progress(self, done: int, total: int | None = None, **values: Any) -> None:
        """Append one progress line: steps done, of how many where known, and any JSON values.

        Raises:
            UserError: the disk is full; the lines before stay whole.
        """
        line = {"time": time.time(), "done": done, "total": total, **values}
        append_line(self.folder / "progress.jsonl", json.dumps(line))

    def add_licences(self, things: Iterable[Licensed]) -> list[Licensed]:
        """Record the licences of what the run uses: `licences.json`, the strictest first; returns all so far."""
        self.licences = sort_strictest([*self.licences, *things])
        licences.write_recorded(self.folder, self.licences)
        return self.licences

    def write_result(self, values: dict[str, Any]) -> None:
        """What the run found, for the page that started it: `result.json`, there whole or not at all."""
        write_text_whole(self.folder / "result.json", json.dumps(values, indent=2) + "\n")


def iterate_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSON Lines file that a command appends to; a last one that a kill left half-written is cut off.

    Raises:
        OSError, ValueError: it cannot be read, or a line is no JSON.
    """
    with open(file, "rb+") as stream:
        whole = 0
        for text in stream:
            if not text.endswith(b"\n"):
                stream.truncate(whole)
                return
            whole += len(text)
            yield json.loads(text)


FOUND = "out-was-there.txt"


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


def add_run(database: Database, data: Path, kind: str, config: dict[str, Any], **columns: Any) -> int:
    """A queued run and its folder, both or neither; returns its id."""
    with database.write() as session:
        return insert_run(session, data, kind, config, **columns).id


def insert_run(session: Session, data: Path, kind: str, config: dict[str, Any], **columns: Any) -> Run:
    """A run, queued unless the columns say otherwise, and its folder."""
    run = Run(kind=kind, config=config, code_version=code_version(), **columns)
    session.add(run)
    session.flush()
    run_folder(data, run.id).mkdir(parents=True, exist_ok=True)
    _write_config(data, run)
    return run


@contextmanager
def open_run(
    database: Database, data: Path, kind: str, config: dict[str, Any], run_id: int | None = None, **columns: Any
) -> Iterator[RunLog]:
    """Run the block as a run: running while it lasts, then finished, stopped or failed with the reason.

    A signal that asks to end ends the block by RunStopped, where it runs on the main thread: no other one is reached by
    signals. See `runs.signals`.

    Args:
        config: what was asked, as JSON values.
        run_id: the queued run that this process was launched for; None makes a new one.
        columns: inputs and outputs, where the command records them.
    Raises:
        UserError: there is no queued run of that id.
    """
    if run_id is None:
        run_id = add_run(database, data, kind, config, **own_command(kind), **_of_this_process(), **columns)
    else:
        _claim(database, data, run_id, config, columns)
    _note_found(database, data, run_id, config)
    previous = listen(_raise_stopped, _STOPPING)
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
        listen(signal.SIG_IGN, _STOPPING)  # being asked once more must not keep the last state from being written
        try:
            end_run(database, run_id, state, reason)
        except OperationalError as error:
            if reason is None:
                raise
            log.warning("the end of run %s cannot be stored: %s", run_id, error.orig)  # the reason is what to tell
        finally:
            give_back(previous)


@contextmanager
def record(command: Command[O], options: O, place: Place) -> Iterator[tuple[Database, RunLog]]:
    """Run the block as a run of a command, with the database of its place.

    Raises:
        UserError: the database cannot be opened, or there is no queued run of that id.
    """
    database = open_database(place.data, place.db)
    try:
        made = {"inputs": command.inputs(options), "outputs": command.outputs(options)}
        used = command.uses(options) + command.inputs(options)
        with open_run(database, place.data, command.name, command.config(options), place.run, **made) as run:
            with database.read() as session:
                run.add_licences(licences.find_licences(used, place.data) + licences.of_project(session))
            try:
                yield database, run
            finally:
                made_in = command.config(options).get("out")
                if command.name in MAKERS and made_in and Path(made_in).is_dir():
                    licences.write_recorded(Path(made_in), run.licences)
    finally:
        database.close()


def _claim(database: Database, data: Path, run_id: int, config: dict[str, Any], columns: Mapping[str, Any]) -> None:
    """Make this process the one that runs a queued run; of two that try, one succeeds.

    What the command made of its options joins what was asked for, so that all runs of a kind are described alike.
    """
    with database.write() as session:
        claimed = session.execute(
            update(Run).where(Run.id == run_id, Run.state == RunState.queued).values(**_of_this_process(), **columns)
        )
        if claimed.rowcount != 1:  # type: ignore[attr-defined]
            raise UserError(f"Run {run_id} is not waiting to be started; leave --run out to start a new one.")
        run = session.get_one(Run, run_id)
        run.config = {**run.config, **config}
        _write_config(data, run)


def _write_config(data: Path, run: Run) -> None:
    write_text_whole(run_folder(data, run.id) / "config.json", json.dumps(run.config, indent=2, sort_keys=True) + "\n")


def _of_this_process() -> dict[str, Any]:
    """Columns of a run that this process runs from now on."""
    process = psutil.Process()
    return {
        "state": RunState.running,
        "host": socket.gethostname(),
        "pid": process.pid,
        "pid_started": process.create_time(),
        "started_at": utc_now(),
    }


def _note_found(database: Database, data: Path, run_id: int, config: dict[str, Any]) -> None:
    """Note that the folder to write to held something before, which no run made: it is never deleted with this one."""
    out = config.get("out")
    if not isinstance(out, str) or not out:
        return
    folder = Path(out).absolute()
    try:
        if not any(folder.iterdir()):
            return
    except OSError:  # not there, or no folder
        return
    with database.read() as session:
        rows = session.execute(select(Run.id, Run.config, Run.cwd).where(Run.id != run_id)).all()
    for row in rows:
        other = row.config.get("out")
        is_it = isinstance(other, str) and Path(row.cwd or ".", other).absolute() == folder
        if is_it and not was_found(data, row.id):
            return  # that one made it, and this one goes on with it
    write_text_whole(run_folder(data, run_id) / FOUND, f"{folder} held files before this run\n")


def was_found(data: Path, run_id: int) -> bool:
    """Whether the folder that a run writes to held something before it that no run had made."""
    return (run_folder(data, run_id) / FOUND).exists()


_STOPPING = tuple(number for number in SIGNALS if number != signal.SIGINT)
"""SIGINT is Python's KeyboardInterrupt already."""


def _raise_stopped(number: int, _frame: FrameType | None) -> None:
    raise RunStopped(128 + number)


def error_line(error: BaseException) -> str:
    """One line that says why: a UserError's message, of others the type as well."""
    message = str(error).strip().partition("\n")[0]
    if not isinstance(error, UserError):
        message = f"{type(error).__name__}: {message}".removesuffix(": ")
    return message[:MAX_ERROR_LENGTH]


def end_run(
    database: Database, run_id: int, state: RunState, error: str | None = None, *, process: Run | None = None
) -> None:
    """Write the last state of a run that is still live; where `process` is given, only while it has that process."""
    ended = update(Run).where(Run.id == run_id, Run.state.in_(LIVE_STATES))
    if process is not None:
        ended = ended.where(
            Run.pid.is_not_distinct_from(process.pid), Run.pid_started.is_not_distinct_from(process.pid_started)
        )
    with database.write() as session:
        session.execute(ended.values(state=state, error=error, ended_at=utc_now()))


def latest_run(session: Session, kind: str) -> Run | None:
    """The run of that kind that was asked for last; those that still wait in the queue for their turn do not count."""
    starts_at_once = and_(Run.device.is_(None), cast(Run.after, String) == "[]")
    begun = or_(Run.state != RunState.queued, Run.pid.is_not(None), starts_at_once)
    return session.scalar(select(Run).where(Run.kind == kind, begun).order_by(Run.id.desc()).limit(1))


def read_progress(data: Path, run_id: int) -> dict[str, Any] | None:
    """The last whole progress line of a run, None before the first."""
    lines = read_last_objects(run_folder(data, run_id) / "progress.jsonl")
    return lines[-1] if lines else None


def last_log_line(data: Path, run_id: int) -> str | None:
    """The last line that a launched run printed, None where it printed nothing."""
    lines = read_log_tail(data, run_id)
    return next((line.strip()[:MAX_ERROR_LENGTH] for line in reversed(lines) if line.strip()), None)


def _last_error_line(data: Path, run_id: int) -> str | None:
    """The last error that one of several processes printed, which accelerate's own words follow."""
    errors = [line for line in read_log_tail(data, run_id) if line.startswith("error: ")]
    return errors[-1][:MAX_ERROR_LENGTH] if errors else last_log_line(data, run_id)


def read_log_tail(data: Path, run_id: int) -> list[str]:
    """The last lines that a launched run printed."""
    return read_tail(run_folder(data, run_id) / "log.txt").decode("utf-8", errors="replace").splitlines()


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


def is_elsewhere(run: Run) -> bool:
    """Whether its process is on another machine, where nothing is known of it here."""
    return run.host not in (None, socket.gethostname())


def is_gone(run: Run) -> bool:
    """Whether what a run was started as is known to have ended; never of another machine's, nor of what never began."""
    if "job_id" in run.launcher.get("slurm", {}):
        return is_done(run.launcher["slurm"])
    return run.pid is not None and not is_elsewhere(run) and not is_alive(run)


def reap_lost(database: Database, data: Path) -> list[int]:
    """End the live runs whose process is gone and return their ids. Queued runs not yet given a process are left.

    One that died before it opened its run was refused (a wrong option, a missing package): failed, with the last line
    that it printed. One that was killed while running is lost.
    """
    with database.read() as session:
        live = session.scalars(select(Run).where(Run.state.in_(LIVE_STATES)).order_by(Run.id)).all()
    gone = [run for run in live if is_gone(run)]
    for run in gone:
        said = _last_error_line(data, run.id) if run.launcher else last_log_line(data, run.id)
        reason: str | None = "the process ended without saying why" + (f"; its last line: {said}" if said else "")
        state = RunState.lost
        if run.state is RunState.stopping:
            state, reason = RunState.stopped, None
        elif run.started_at is None:
            state, reason = RunState.failed, said or "the process ended before the run began"
        end_run(database, run.id, state, reason, process=run)
    return [run.id for run in gone]


def artifact_of(data: Path, run: Run) -> Path | None:
    """The folder that a run makes: 'out' of its result, or of its config while there is no result."""
    out = read_json(run_folder(data, run.id) / "result.json").get("out") or run.config.get("out")
    return Path(run.cwd or ".", out) if isinstance(out, str) and out else None
