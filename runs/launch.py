"""Queue, start and continue runs.

A run is the command that a person would type, as a process in its own session, so that closing the app or the browser
changes nothing about it. No shell is in between: whatever an argument holds stays one argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from db.errors import UserError
from db.models import Run, RunState
from db.session import Database
from runs import slurm
from runs.devices import TRAINING_KINDS, is_device
from runs.licences import find_licences, of_project, refuse_non_commercial, wants_commercial
from runs.options import Command, O
from runs.process import is_waiting, lock_starting, start_process
from runs.space import say_if_full
from runs.store import insert_run, reap_lost

CONTINUABLE = (RunState.stopped, RunState.failed, RunState.lost)


def start(database: Database, data: Path, command: Command[O], options: O, **how: Any) -> int:
    """Start a command as a run, or queue it, and return its id at once: the one way of pages and of the next round.

    Args:
        how: url, person_id, device, after and launcher, as of `launch`.
    Raises:
        UserError: the options cannot be meant, or as `launch`.
    """
    return launch(database, data, command.name, **describe_run(command, options, data), **how)


def describe_run(command: Command[O], options: O, data: Path, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The arguments, config, inputs and outputs of a run.

    Args:
        arguments: as a person typed them; None writes those that give the options.
    Raises:
        UserError: the options cannot be meant.
    """
    settled = command.settle(options, data)
    return {
        "arguments": command.words(options) if arguments is None else list(arguments),
        "config": command.config(settled),
        "inputs": command.inputs(settled),
        "outputs": command.outputs(settled),
    }


def launch(
    database: Database,
    data: Path,
    kind: str,
    arguments: Sequence[str],
    config: dict[str, Any],
    *,
    url: str | None = None,
    person_id: int | None = None,
    device: str | None = None,
    after: Sequence[int] = (),
    launcher: dict[str, Any] | None = None,
    inputs: list[dict[str, str]] | None = None,
    outputs: list[dict[str, str]] | None = None,
) -> int:
    """Start `python -m <kind> <arguments>` as a run, or queue it, and return its id at once.

    Args:
        kind: module and subcommand, such as 'annotate import'.
        arguments: what follows them; `--data`, `--db` and `--run` are added here.
        url: the database URL where it is not the data folder's own; it may hold a password, so it goes to the
            process in the environment (FACEREWARD_DB), not on the command line.
        device: whose queue it waits in, such as 'cuda:0' or 'cpu'; None starts it at once.
        after: runs that have to be finished first.
        launcher: {"processes": 2, "machines": 1} by accelerate; {"slurm": {…}} by submitit; plain otherwise.
    Raises:
        UserError: it could not be started (its run is there as failed), there is no such device or run to wait for, or
            it is to start at once and the disk is nearly full.
    """
    if device is None and not after and (full := say_if_full(data)):
        raise UserError(f"The disk of {data} has {full}. Free some space; nothing was started.")
    with database.write() as session:
        run = enqueue(
            session,
            data,
            kind,
            arguments,
            config,
            person_id=person_id,
            device=device,
            after=list(after),
            launcher=launcher or {},
            inputs=inputs,
            outputs=outputs,
        )
    _start_soon(database, data, run.id, url)
    return run.id


def enqueue(
    session: Session, data: Path, kind: str, arguments: Sequence[str], config: dict[str, Any], **columns: Any
) -> Run:
    """A run that waits for its device and for the runs of `after`.

    Raises:
        UserError: the device is not written as one, there is no such run to wait for, or commercial use is wanted and
            the licence of something that it is made from forbids that.
    """
    if wants_commercial(session):
        refuse_non_commercial(find_licences(columns.get("inputs") or [], data) + of_project(session))
    device, after = columns.get("device"), columns.get("after", ())
    if device is not None and not is_device(device):
        raise UserError(f"There is no device {device!r}; give cpu, cuda:0, or several GPUs as cuda:0,cuda:1.")
    if device is not None and "slurm" in columns.get("launcher", {}):
        raise UserError("A run in Slurm waits in Slurm's queue; leave the device out.")
    for run_id in after:
        if session.get(Run, run_id) is None:
            raise UserError(f"There is no run {run_id} to wait for.")
    return insert_run(session, data, kind, config, arguments=list(arguments), cwd=str(Path.cwd()), **columns)


def _start_soon(database: Database, data: Path, run_id: int, url: str | None) -> None:
    """Start a queued run at once if it needs no room and waits for nothing; else what can be started now.

    Raises:
        UserError: it could not be started.
    """
    with database.write() as session:
        lock_starting(session)
        run = session.get_one(Run, run_id, with_for_update=True)
        at_once = run.device is None and not run.after
        if at_once and is_waiting(run):  # an app that looks after the queue may have been faster
            start_process(data, run, url)
    if not at_once:
        start_what_can(database, data, url)
        with database.read() as session:
            run = session.get_one(Run, run_id)
    if run.state is RunState.failed and run.pid is None:
        raise UserError(f"Run {run_id} {run.error}.")


def start_what_can(database: Database, data: Path, url: str | None) -> None:
    """One look at the queue, for where nobody else looks."""
    from runs.supervise import start_due  # it starts runs by this module

    reap_lost(database, data)
    start_due(database, data, url=url)


def can_continue(run: Run) -> bool:
    """Whether the same command again would go on where this run ended."""
    alone = run.launcher.get("machines", 1) == 1 or "machine_rank" in run.launcher
    return run.state in CONTINUABLE and run.cwd is not None and alone


def continue_run(database: Database, data: Path, run_id: int, *, url: str | None = None) -> None:
    """Queue a run that ended early once more: the same row, the same folder, the same command.

    A training goes on from its last checkpoint; progress and log lines are appended.

    Raises:
        UserError: there is no such run, it has not ended early, its command is not known, it could not be started.
    """
    with database.write() as session:
        run = session.get(Run, run_id, with_for_update=True)
        if run is None:
            raise UserError(f"There is no run {run_id}.")
        if run.state not in CONTINUABLE:
            raise UserError(f"Run {run_id} is {run.state}; only a stopped, failed or lost run can be continued.")
        if not can_continue(run):
            raise UserError(f"Run {run_id} cannot be continued from here; run its command again where it was started.")
        run.state, run.error, run.host, run.pid, run.pid_started = RunState.queued, None, None, None, None
        run.started_at = run.ended_at = None
        run.launcher = _unstarted(run.launcher)
        run.arguments = _name_folder(run)
    _start_soon(database, data, run_id, url)


def _name_folder(run: Run) -> list[str]:
    """A training's arguments with the folder that it chose itself: another version of the code may choose another."""
    arguments, out = list(run.arguments), run.config.get("out")
    is_named = any(word == "--out" or word.startswith("--out=") for word in arguments)
    return arguments if run.kind not in TRAINING_KINDS or not out or is_named else [f"--out={out}", *arguments]


def _unstarted(launcher: dict[str, Any]) -> dict[str, Any]:
    """The launcher as it was asked for, without the process or the job that it led to."""
    asked = {name: value for name, value in launcher.items() if name not in ("pid", "pid_started")}
    if "slurm" in asked:
        asked["slurm"] = {name: value for name, value in asked["slurm"].items() if name not in slurm.OURS}
    return asked
