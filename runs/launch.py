"""Start and stop a run as a plain process of its own.

The process is the command that a person would type, in its own session, so that closing the app or the browser
changes nothing about it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import update

from db.errors import UserError
from db.models import Run, RunState
from db.session import Database
from runs.store import LIVE_STATES, add_run, end_run, is_alive, run_folder

KILL_SECONDS = 5.0
PROJECT_ROOT = Path(__file__).resolve().parent.parent
PASSED_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "VIRTUAL_ENV",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
)


def launch(
    database: Database,
    data: Path,
    kind: str,
    arguments: Sequence[str],
    config: dict[str, Any],
    *,
    url: str | None = None,
    person_id: int | None = None,
) -> int:
    """Start `python -m <kind> <arguments>` as a run and return its id at once.

    Args:
        kind: module and subcommand, such as 'annotate import'.
        arguments: what follows them; `--data`, `--db` and `--run` are added here.
        url: the database URL where it is not the data folder's own; it may hold a password, so it goes to the
            process in the environment (FACEREWARD_DB), not on the command line.
    Raises:
        UserError: the process could not be started; its run is there as failed.
    """
    run_id = add_run(database, data, kind, config, person_id)
    module, *subcommand = kind.split()
    command = [
        sys.executable,
        "-m",
        module,
        *subcommand,
        *arguments,
        "--data",
        str(data.resolve()),
        "--run",
        str(run_id),
    ]
    environment = {name: os.environ[name] for name in PASSED_ENVIRONMENT if name in os.environ}
    environment["PYTHONPATH"] = str(PROJECT_ROOT)
    if url:
        environment["FACEREWARD_DB"] = url
    try:
        with open(run_folder(data, run_id) / "log.txt", "ab") as log:
            process = subprocess.Popen(
                command,
                cwd=Path.cwd(),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        end_run(database, run_id, RunState.failed, f"could not be started: {error}")
        raise UserError(f"Run {run_id} could not be started: {error}.") from error
    with database.write() as session:
        session.execute(
            update(Run)
            .where(Run.id == run_id, Run.pid.is_(None))  # the process may have claimed its run already
            .values(pid=process.pid, pid_started=psutil.Process(process.pid).create_time())
        )
    # Only a parent that waits for it lets an ended process go; until here it stays to be asked for its start time.
    threading.Thread(target=process.wait, name=f"run {run_id}", daemon=True).start()
    return run_id


def stop(database: Database, run_id: int, grace_seconds: float = 10.0) -> None:
    """Ask a run to stop, wait for it, then kill what is left of its process group.

    A run that is still queued is not started any more. One that ends by itself meanwhile keeps its own last state.

    Raises:
        UserError: there is no such run, it has ended already, or its process is this one or another user's.
    """
    with database.write() as session:
        run = session.get(Run, run_id)
        if run is None or run.state not in LIVE_STATES:
            raise UserError(f"Run {run_id} is not running.")
        if run.pid == os.getpid():
            raise UserError(f"Run {run_id} is part of this program and ends with it; wait for it.")
        run.state = RunState.stopping
        leads_group = _leads_its_group(run)
        _send(run, signal.SIGTERM, leads_group)  # if this is refused, the state stays what it was
    _wait_until_gone(run, grace_seconds)
    _send(run, signal.SIGKILL, leads_group)
    _wait_until_gone(run, KILL_SECONDS)
    end_run(database, run_id, RunState.stopped)


def _leads_its_group(run: Run) -> bool:
    """Whether the group is the run's own; one started by a shell script shares the script's, not ours to end."""
    try:
        return run.pid is not None and is_alive(run) and os.getpgid(run.pid) == run.pid
    except ProcessLookupError:
        return False


def _send(run: Run, number: signal.Signals, leads_group: bool) -> None:
    """Signal the run's group, which may outlive it, or else the run alone; nothing where it is gone."""
    try:
        if run.pid is not None and leads_group:
            os.killpg(run.pid, number)
        elif run.pid is not None and is_alive(run):
            os.kill(run.pid, number)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise UserError(f"Run {run.id} belongs to another user of this machine, who has to stop it.") from error


def _wait_until_gone(run: Run, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while is_alive(run) and time.monotonic() < deadline:
        time.sleep(0.05)
