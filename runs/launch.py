"""Start, stop, continue and delete a run.

A run is the command that a person would type, as a process in its own session, so that closing the app or the browser
changes nothing about it. No shell is in between: whatever an argument holds stays one argument.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.command import DATABASE_VARIABLE
from db.errors import UserError
from db.models import Run, RunState, utc_now
from db.session import Database
from runs import slurm
from runs.delete import delete_run
from runs.devices import CPU, TRAINING_KINDS, is_device, list_devices, visible_devices
from runs.space import say_if_full
from runs.stop import stop
from runs.store import insert_run, reap_lost, run_folder

__all__ = ["can_continue", "command_of", "continue_run", "delete_run", "enqueue", "launch", "start_process", "stop"]

PROJECT_ROOT = Path(__file__).resolve().parent.parent
PASSED_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "TORCH_HOME",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
)
"""All that a run sees of the environment of whoever starts it: no secret that it has no use for."""
ACCELERATE_CPU = {"ACCELERATE_USE_CPU": "true"}
"""Without it, each process that `accelerate launch` starts on a CPU trains for itself."""
START_LOCK = 7236522
"""PostgreSQL's number of the lock that who starts runs holds."""
ELASTIC_SIGNALS = {"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"}
"""What `accelerate launch` passes on to its processes; it would die of the last two, which Slurm sends."""
CONTINUABLE = (RunState.stopped, RunState.failed, RunState.lost)


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
        )
    _start_soon(database, data, run.id, url)
    return run.id


def enqueue(
    session: Session, data: Path, kind: str, arguments: Sequence[str], config: dict[str, Any], **columns: Any
) -> Run:
    """A run that waits for its device and for the runs of `after`.

    Raises:
        UserError: the device is not written as one, or there is no such run to wait for.
    """
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


def lock_starting(session: Session) -> None:
    """Let nobody else start runs until this transaction ends; SQLite's write lock does that alone."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": START_LOCK})


def is_waiting(run: Run) -> bool:
    """Whether a queued run has not been started yet."""
    return run.state is RunState.queued and run.pid is None and "job_id" not in run.launcher.get("slurm", {})


def start_process(data: Path, run: Run, url: str | None) -> None:
    """Start a queued run's process, or submit its job, and note it in the row; if that fails, the run has failed.

    Within the write transaction that found the run queued: the process, which claims its run first of all, waits
    until that transaction has ended.
    """
    folder = run_folder(data, run.id)
    common = [f"--data={data.resolve()}", f"--run={run.id}"]
    module, *words = run.kind.split()
    command = [sys.executable, *_module_words(run), module, *words, *common]
    command += run.arguments
    environment = _environment(run, url)
    try:
        if "slurm" in run.launcher:
            submitted = slurm.submit(
                command,
                slurm.keep_environment(data / "job-environments", run.id, environment),
                run.cwd or ".",
                folder / "slurm",
                folder / "log.txt",
                run.launcher["slurm"],
            )
            run.launcher = {**run.launcher, "slurm": submitted}
            return
        with open(folder / "log.txt", "ab") as log:
            process = subprocess.Popen(
                command,
                cwd=run.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except (OSError, ValueError, UserError) as error:  # ValueError: an argument with a NUL character
        run.state, run.ended_at = RunState.failed, utc_now()
        run.error = f"could not be started: {str(error).removesuffix('.')}"
        return
    run.host, run.pid, run.pid_started = socket.gethostname(), process.pid, psutil.Process(process.pid).create_time()
    if run.launcher:  # the row's pid will be that of the first of accelerate's processes
        run.launcher = {**run.launcher, "pid": run.pid, "pid_started": run.pid_started}
    # Only a parent that waits for it lets an ended process go; until here it stays to be asked for its start time.
    threading.Thread(target=process.wait, name=f"run {run.id}", daemon=True).start()


def _module_words(run: Run) -> list[str]:
    """The words between python and the run's module: '-m', or accelerate's with its options."""
    processes = run.launcher.get("processes", 1)
    machines = run.launcher.get("machines", 1)
    if processes == machines == 1:
        return ["-m"]
    words = ["-m", "accelerate.commands.launch", "--num_processes", str(processes), "--num_machines", str(machines)]
    # Port 0 is any that is free, so that two trainings of one machine do not meet.
    where = {"main_process_port": 0, **run.launcher} if machines == 1 else run.launcher
    for name in ("machine_rank", "main_process_ip", "main_process_port"):
        if name in where:
            words.append(f"--{name}={where[name]}")
    words.append("--multi_gpu")  # its --cpu starts one process, whatever the number
    # Both said, so that accelerate neither asks nor reads a configuration of whoever starts it.
    return [*words, "--mixed_precision", "no", "--dynamo_backend", "no", "-m"]


def command_of(run: Run) -> list[str]:
    """What a person would type for this run, a word each: ['python', '-m', 'reward', 'train', '--preset', 'tiny']."""
    variables = ["env", *(f"{name}={value}" for name, value in ACCELERATE_CPU.items())] if _shares_cpu(run) else []
    return [*variables, "python", *_module_words(run), *run.kind.split(), *run.arguments]


def _shares_cpu(run: Run) -> bool:
    """Whether several processes of accelerate compute on the CPU together."""
    return len(_module_words(run)) > 1 and (run.device == CPU or (run.device is None and list_devices() == [CPU]))


def _environment(run: Run, url: str | None) -> dict[str, str]:
    environment = {name: os.environ[name] for name in PASSED_ENVIRONMENT if name in os.environ}
    environment["PYTHONPATH"] = str(PROJECT_ROOT)
    if "slurm" in run.launcher:
        environment.pop("CUDA_VISIBLE_DEVICES", None)  # Slurm says which
    elif run.device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible_devices(run.device)
    if _shares_cpu(run):
        environment |= ACCELERATE_CPU
    if len(_module_words(run)) > 1:
        environment |= ELASTIC_SIGNALS
    if url:
        environment[DATABASE_VARIABLE] = url
        # What the URL leaves out, such as where the password is: PGPASSFILE, PGSERVICE, PGSSLROOTCERT, …
        environment |= {name: value for name, value in os.environ.items() if name.startswith("PG")}
    return environment


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
