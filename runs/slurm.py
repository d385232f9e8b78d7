"""Run jobs on a Slurm cluster through submitit (an optional extra), or on submitit's local stand-in.

The job runs the very command of a plain run, with the same environment (from a file that its owner alone reads), and
writes into the same log. The settings are submitit's: {"cluster": "slurm", "timeout_min": 600,
"slurm_partition": "gpu", "gpus_per_node": 1, …}.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

from db.command import hidden_secrets
from db.errors import UserError

log = logging.getLogger(__name__)

OURS = ("job_id", "folder", "started", "environment")
"""Fields that a submitted job adds to its settings."""
CLOCK_STEP_SECONDS = 2.0
SCANCEL_SECONDS = 30
REFUSALS = (RuntimeError, ValueError, TypeError, NameError, AssertionError, OSError, subprocess.SubprocessError)
"""Errors of submitit about settings, and about a cluster that is not there."""


def submit(
    command: list[str], environment: Path, cwd: str, folder: Path, log_file: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """Submit the command as a job and return the settings with what finds the job again.

    Args:
        environment: the file that `keep_environment` made.
        folder: where submitit keeps its files; the compute nodes must see it.
    Raises:
        UserError: submitit is not installed, there is no such cluster, or it refuses the settings.
    """
    try:
        import cloudpickle
        import submitit
    except ImportError as error:
        raise UserError("Slurm needs the package submitit: pip install 'submitit>=1.5'.") from error
    asked = {name: value for name, value in settings.items() if name not in OURS}
    parameters = {name: value for name, value in asked.items() if name != "cluster"}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        executor = submitit.AutoExecutor(folder, cluster=asked.get("cluster", "slurm"))
        executor.update_parameters(**{"timeout_min": 24 * 60, **parameters})
        # By value: a job's process looks for our modules only once the command runs.
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        with hidden_secrets():
            job = executor.submit(run_in_job, command, str(environment), cwd, str(log_file))
    except REFUSALS as error:
        environment.unlink()
        line = " ".join(str(error).split())
        raise UserError(f"Slurm did not take the run: {line or type(error).__name__}") from error
    submitted = {**asked, "job_id": str(job.job_id), "folder": str(folder), "environment": str(environment)}
    if asked.get("cluster") == "local":  # its job id is the pid of what controls it, a child of this process
        submitted["started"] = psutil.Process(int(job.job_id)).create_time()
        threading.Thread(target=job.wait, name=f"job {job.job_id}", daemon=True).start()
    return submitted


def keep_environment(folder: Path, run_id: int, environment: dict[str, str]) -> Path:
    """Write a job's environment into a file for its owner alone, in the place of the run's earlier ones.

    The database's password may be in it, and submitit pickles what a job is called with where others may read. The
    folder lies outside the runs' folders, whose files the app shows to every admin.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    for old in folder.glob(f"run-{run_id}-*.json"):
        old.unlink(missing_ok=True)
    path = folder / f"run-{run_id}-{secrets.token_hex(4)}.json"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        json.dump(environment, stream)
        stream.flush()
        os.fsync(stream.fileno())
    return path


def forget_environment(job: dict[str, Any]) -> None:
    """Delete the file that `keep_environment` made for a job, where the job did not come to do it itself."""
    if "environment" in job:
        Path(job["environment"]).unlink(missing_ok=True)


def run_in_job(command: list[str], environment_file: str, cwd: str, log_file: str) -> int:
    """Run the command on the compute node, and ask it to end before the job's time is over.

    Slurm sends SIGTERM to every process of a job, submitit's local controller only to this one; SIGUSR2, which comes
    ahead of the time limit, would kill a command that does not know it.
    """
    environment = json.loads(Path(environment_file).read_text(encoding="utf-8"))
    inherited = {name: value for name, value in os.environ.items() if name.startswith(("SLURM_", "CUDA_VISIBLE"))}
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        inherited = {}
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # inherited by the command
    with open(log_file, "ab") as stream:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**environment, **inherited},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )

    def ask_to_end(*_: object) -> None:
        process.terminate()

    signal.signal(signal.SIGUSR2, ask_to_end)
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        signal.signal(signal.SIGTERM, ask_to_end)
    code = process.wait()
    Path(environment_file).unlink(missing_ok=True)  # only now: a job that lost its machine is started once more
    return code


def is_done(job: dict[str, Any]) -> bool:
    """Whether a submitted job has ended; False where Slurm cannot be asked from here."""
    if job.get("cluster") == "local":
        return _controller(job) is None
    try:
        import submitit

        return bool(submitit.SlurmJob(folder=job["folder"], job_id=job["job_id"]).done())
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.debug("Slurm cannot be asked about job %s: %s", job["job_id"], error)
        return False


def ask_to_stop(job: dict[str, Any]) -> None:
    """Ask the command of a job to end with a checkpoint.

    Raises:
        UserError: Slurm cannot be reached from here.
    """
    if job.get("cluster") == "local":
        controller = _controller(job)
        if controller is not None:
            controller.terminate()
        return
    # USR2, which run_in_job passes on as one SIGTERM: a second one would end a training before its checkpoint.
    _scancel("--signal=USR2", job["job_id"])


def cancel(job: dict[str, Any]) -> None:
    """End what is left of a job, and forget its environment.

    Raises:
        UserError: Slurm cannot be reached from here.
    """
    forget_environment(job)
    if job.get("cluster") != "local":
        _scancel(job["job_id"])
        return
    controller = _controller(job)
    if controller is not None:
        for process in [*controller.children(recursive=True), controller]:
            process.kill()


def _scancel(*words: str) -> None:
    try:
        subprocess.run(["scancel", *words], check=True, capture_output=True, text=True, timeout=SCANCEL_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise UserError(f"scancel failed: {' '.join(str(said).split())}") from error


def _controller(job: dict[str, Any]) -> psutil.Process | None:
    """The process of a local job, None where it has ended."""
    try:
        process = psutil.Process(int(job["job_id"]))
        same = abs(process.create_time() - float(job["started"])) < CLOCK_STEP_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
