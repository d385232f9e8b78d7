"""Start queued runs as soon as their device is free and the runs they wait for have ended.

Nothing is kept in memory. Any number of apps may look after one database: who starts something does it inside one
write transaction that the others wait for. Closing or killing them changes nothing about what runs.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import Run, RunState
from db.session import Database
from runs.devices import CPU, list_devices, split_devices
from runs.process import is_waiting, lock_starting, start_process
from runs.space import say_if_full
from runs.store import LIVE_STATES, is_elsewhere, reap_lost, run_folder

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


def start_supervisor(database: Database, data: Path, *, url: str | None = None, cpu_slots: int = 1) -> threading.Thread:
    """Look every second what has ended and what can start, until the program ends."""
    thread = threading.Thread(target=supervise, args=(database, data, url, cpu_slots), name="supervisor", daemon=True)
    thread.start()
    return thread


def supervise(
    database: Database, data: Path, url: str | None = None, cpu_slots: int = 1, end: threading.Event | None = None
) -> None:
    """Do the work of `start_supervisor` in this thread, until `end` is set."""
    end = end or threading.Event()
    last_error = ""
    while not end.wait(LOOK_SECONDS):
        try:
            reap_lost(database, data)
            start_due(database, data, url=url, cpu_slots=cpu_slots)
            last_error = ""
        except Exception as error:
            if str(error) != last_error:  # the same one every second would fill the log
                log.exception("Looking after the runs failed; the next look may fare better")
            last_error = str(error)


def start_due(database: Database, data: Path, *, url: str | None = None, cpu_slots: int = 1) -> list[int]:
    """Start the queued runs that can start, oldest first, and return their ids.

    Args:
        url: the database URL where it is not the data folder's own.
        cpu_slots: how many runs of the device 'cpu' may run on this machine at a time.
    """
    with database.read() as session:
        if not _find_due(session, data, cpu_slots):
            return []
    started = []
    with database.write() as session:
        lock_starting(session)
        for run in _find_due(session, data, cpu_slots, lock=True):
            start_process(data, run, url)
            if run.state is RunState.queued:
                started.append(run.id)
    return started


def why_waiting(session: Session, data: Path, run: Run, cpu_slots: int = 1) -> str | None:
    """One line that says what a queued run waits for; None where it waits for nothing, or is not queued."""
    if "job_id" in run.launcher.get("slurm", {}) and run.state is RunState.queued:
        return f"waits in Slurm as job {run.launcher['slurm']['job_id']}"
    if not is_waiting(run):
        return None
    return _find_obstacle(_survey(session, data, [run]), run, cpu_slots) or _describe_if_full(data)


def _find_due(session: Session, data: Path, cpu_slots: int, *, lock: bool = False) -> list[Run]:
    """The runs to start now."""
    queued = select(Run).where(Run.state == RunState.queued, Run.pid.is_(None)).order_by(Run.id)
    waiting = [run for run in session.scalars(queued.with_for_update() if lock else queued) if is_waiting(run)]
    if not waiting or say_if_full(data):
        return []
    around = _survey(session, data, waiting)
    due = []
    for run in waiting:
        if _find_obstacle(around, run, cpu_slots) is None:
            due.append(run)
            _mark_busy(around.busy, run)
    return due


@dataclass(frozen=True)
class _Surroundings:
    """Facts that decide about the queued runs."""

    data: Path
    devices: list[str]
    """Of this machine."""
    busy: dict[str, list[int]]
    """The runs on each of them."""
    states: dict[int, RunState]
    """Of the runs that others wait for."""


def _survey(session: Session, data: Path, waiting: Sequence[Run]) -> _Surroundings:
    busy: dict[str, list[int]] = {}
    live = select(Run).where(Run.state.in_(LIVE_STATES), Run.pid.is_not(None), Run.device.is_not(None))
    for run in session.scalars(live.order_by(Run.id)):
        if not is_elsewhere(run):
            _mark_busy(busy, run)
    earlier = {run_id for run in waiting for run_id in run.after}
    rows = session.execute(select(Run.id, Run.state).where(Run.id.in_(earlier)))
    return _Surroundings(data, list_devices(), busy, {row.id: row.state for row in rows})


def _mark_busy(busy: dict[str, list[int]], run: Run) -> None:
    for device in split_devices(run.device):
        busy.setdefault(device, []).append(run.id)


def _find_obstacle(around: _Surroundings, run: Run, cpu_slots: int) -> str | None:
    """Return why a run cannot start now, None where it can."""
    for run_id in run.after:
        state = around.states.get(run_id)
        if state is None:
            return f"waits for run {run_id}, which was deleted; stop this run"
        if state in LIVE_STATES:
            return f"waits for run {run_id}"
        if state is not RunState.finished:
            was = {RunState.failed: "failed", RunState.lost: "was lost"}.get(state, "was stopped")
            return f"waits for run {run_id}, which {was}: continue that one, or stop this one"
    if not run_folder(around.data, run.id).is_dir():
        return f"waits for a machine that has its folder {run_folder(around.data, run.id)}"
    for device in split_devices(run.device):
        if device not in around.devices:
            return f"waits for {device}, which this machine ({socket.gethostname()}) does not have"
        others = around.busy.get(device, [])
        if len(others) >= (cpu_slots if device == CPU else 1):
            return f"waits for {device}, where run {others[0]} is"
    return None


def _describe_if_full(data: Path) -> str | None:
    full = say_if_full(data)
    return f"waits for space: {full}" if full else None
