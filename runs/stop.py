"""Stop a run: ask it for a checkpoint, wait, then kill what is left of it."""

from __future__ import annotations

import os
import signal
import time

import psutil
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.errors import UserError
from db.models import Run, RunState
from db.session import Database
from runs import slurm
from runs.devices import TRAINING_KINDS
from runs.store import CLOCK_STEP_SECONDS, LIVE_STATES, end_run, is_alive, is_elsewhere, is_gone

GRACE_SECONDS = 10.0
TRAINING_GRACE_SECONDS = 60.0
"""A training ends after the step that it is at, with a checkpoint."""
KILL_SECONDS = 5.0


def stop(database: Database, run_id: int, grace_seconds: float | None = None) -> None:
    """Ask a run to stop, wait for it, then kill what is left of its processes.

    A run that is still queued is not started any more, nor are those that wait for it. One that ends by itself
    meanwhile keeps its own last state.

    Args:
        grace_seconds: how long it may take; None is as long as runs of its kind may need.
    Raises:
        UserError: there is no such run, it has ended already, its process is this one or another user's, or is on
            another machine.
    """
    with database.write() as session:
        run = session.get(Run, run_id, with_for_update=True)
        if run is None or run.state not in LIVE_STATES:
            raise UserError(f"Run {run_id} is not running.")
        job = run.launcher.get("slurm", {})
        submitted = "job_id" in job
        if not submitted and is_elsewhere(run):
            raise UserError(
                f"Run {run_id} is on {run.host}; stop it there. If that machine is gone for good: "
                f"python -m runs stop {run_id} --machine-is-gone"
            )
        if run.pid == os.getpid():
            raise UserError(f"Run {run_id} is part of this program and ends with it; wait for it.")
        followers = find_followers(session, run_id) if run.state is RunState.queued and run.pid is None else []
        run.state = RunState.stopping
        family = [] if submitted else find_family(run)
        leads_group = not submitted and _leads_its_group(run)
        # if this is refused, the state stays what it was
        if submitted and run.started_at is None:
            slurm.cancel(job)
        elif submitted:
            slurm.ask_to_stop(job)
        else:
            _send(run, signal.SIGTERM, leads_group)
    if grace_seconds is None:
        grace_seconds = TRAINING_GRACE_SECONDS if run.kind in TRAINING_KINDS else GRACE_SECONDS
    _wait_until_gone(database, run, grace_seconds)
    if submitted:
        slurm.cancel(job)
    else:
        _send(run, signal.SIGKILL, leads_group)
        kill(family)
    _wait_until_gone(database, run, KILL_SECONDS)
    # Only while it has that process: it may have ended by itself, and somebody may have continued it meanwhile.
    end_run(database, run_id, RunState.stopped, process=run)
    for follower in followers:
        end_run(database, follower, RunState.stopped, f"run {run_id}, which it waited for, was stopped")


def find_followers(session: Session, run_id: int) -> list[int]:
    """The queued runs that wait for a run, or for one that does."""
    found = {run_id}
    for run in session.scalars(select(Run).where(Run.state == RunState.queued, Run.id > run_id).order_by(Run.id)):
        if found.intersection(run.after):
            found.add(run.id)
    return sorted(found - {run_id})


def give_up(database: Database, run_id: int) -> None:
    """Call a run lost whose machine will not come back.

    Raises:
        UserError: there is no such live run, or its process is on this machine.
    """
    with database.write() as session:
        run = session.get(Run, run_id, with_for_update=True)
        if run is None or run.state not in LIVE_STATES or not is_elsewhere(run):
            raise UserError(f"Run {run_id} is not running on another machine.")
        host = run.host
    end_run(database, run_id, RunState.lost, f"the machine {host} is gone")


def find_family(run: Run) -> list[psutil.Process]:
    """The run's process, accelerate's that started it, and all that they started: each a session of its own there."""
    family: dict[int, psutil.Process] = {}
    for pid, started in ((run.pid, run.pid_started), (run.launcher.get("pid"), run.launcher.get("pid_started"))):
        if pid is None:
            continue
        try:
            process = psutil.Process(pid)
            if started is None or abs(process.create_time() - started) < CLOCK_STEP_SECONDS:
                family |= {member.pid: member for member in [process, *process.children(recursive=True)]}
        except psutil.NoSuchProcess:
            pass
    return [process for process in family.values() if process.pid != os.getpid()]


def kill(family: list[psutil.Process]) -> None:
    """End those that still live; psutil knows by the start time which pid is another process by now."""
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
        except psutil.AccessDenied as error:
            raise UserError(f"Process {process.pid} belongs to another user of this machine.") from error


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


def _wait_until_gone(database: Database, run: Run, seconds: float) -> None:
    """Until what it was started as has ended; a job may say so in the database long before Slurm does."""
    submitted = "job_id" in run.launcher.get("slurm", {})
    deadline = time.monotonic() + seconds
    while (submitted or run.pid is not None) and not is_gone(run) and time.monotonic() < deadline:
        time.sleep(0.05)
        if submitted and run.launcher["slurm"].get("cluster") != "local":
            time.sleep(0.5)
            with database.read() as session:
                if session.scalar(select(Run.state).where(Run.id == run.id)) not in LIVE_STATES:
                    return
