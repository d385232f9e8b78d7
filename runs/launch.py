"""Start and stop a run as a plain process of its own.

The process is the command that a person would type, in its own session, so that closing the app or the browser
changes nothing about it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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
    with database.write() as session:
        session.execute(
            update(Run)
            .where(Run.id == run_id, Run.pid.is_(None))
            .values(pid=process.pid, pid_started=psutil.Process(process.pid).create_time())
        )
    return run_id


def stop(database: Database, run_id: int, grace_seconds: float = 10.0) -> None:
    """Ask a run to stop, wait for it, then kill its process group.

    Raises:
        UserError: there is no such run, or it has ended already.
    """
    with database.write() as session:
        run = session.get(Run, run_id)
        if run is None or run.state not in LIVE_STATES:
            raise UserError(f"Run {run_id} is not running.")
        run.state = RunState.stopping
    if is_alive(run) and run.pid is not None:
        os.killpg(run.pid, signal.SIGTERM) if os.getpgid(run.pid) == run.pid else os.kill(run.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while is_alive(run) and time.monotonic() < deadline:
            time.sleep(0.05)
        if is_alive(run):
            os.killpg(run.pid, signal.SIGKILL) if os.getpgid(run.pid) == run.pid else os.kill(run.pid, signal.SIGKILL)
    end_run(database, run_id, RunState.stopped)
