"""Start the process of a run, with the environment that it needs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.command import DATABASE_VARIABLE
from db.errors import UserError
from db.models import Run, RunState, utc_now
from runs import slurm
from runs.devices import CPU, list_devices, visible_devices
from runs.store import run_folder

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
    # where the clouds' libraries find their settings and credentials, for images in an object store
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_PROFILE",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "GOOGLE_APPLICATION_CREDENTIALS",
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
"""Signals that `accelerate launch` passes on to its processes; it would die of the last two, which Slurm sends."""


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
    """Return the words a person would type for this run: ['python', '-m', 'reward', 'train', '--preset', 'tiny']."""
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
