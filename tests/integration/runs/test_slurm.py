"""Runs as jobs, by submitit's local executor, which stands in for Slurm."""

from __future__ import annotations

import builtins
import json
import os
import signal
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("submitit", reason="needs submitit, which requirements-dev.txt names")

from sqlalchemy import select

from db.errors import UserError
from db.models import Run, RunState
from db.session import Database
from runs import slurm
from runs.launch import continue_run, launch
from runs.stop import stop
from runs.store import insert_run, last_log_line, read_progress, reap_lost, run_folder
from runs.supervise import why_waiting
from tests.watching import LIMIT_SECONDS, get_run, wait_until

LOCAL = {"slurm": {"cluster": "local", "timeout_min": 60}}
JOB = """
import argparse, os, signal, time
from contextlib import suppress
from pathlib import Path
from db.session import open_database
from runs.store import open_run
parser = argparse.ArgumentParser()
parser.add_argument("how")
parser.add_argument("--data", type=Path)
parser.add_argument("--run", type=int)
args = parser.parse_args()
with open_run(open_database(args.data), args.data, "job", {}, args.run) as run:
    print("working on", repr(args.how), flush=True)
    if args.how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run.progress(1, 2)
    if args.how in ("sleep", "deaf"):
        time.sleep(600)
    url = os.environ.get("FACEREWARD_DB", "")
    run.write_result({"secret": os.environ.get("SECRET"), "url_length": len(url), "rest": os.environ.get("PGPASSFILE")})
"""


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.chdir(tmp_path)


def start(database: Database, data: Path, how: str) -> int:
    run_id = launch(database, data, "job", [how], {}, launcher=LOCAL)
    wait_until(lambda: read_progress(data, run_id))
    return run_id


def test_a_job_runs_the_very_command(database: Database, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush")
    run_id = start(database, data, "$(echo)")
    wait_until(lambda: get_run(database, run_id).state is RunState.finished)
    run = get_run(database, run_id)
    assert run.launcher["slurm"]["cluster"] == "local"
    assert last_log_line(data, run_id) == "working on '$(echo)'"
    assert '"secret": null' in (run_folder(data, run_id) / "result.json").read_text()
    wait_until(lambda: slurm.is_done(run.launcher["slurm"]))
    assert reap_lost(database, data) == []


@pytest.mark.parametrize("how", ["sleep", "deaf"])
def test_stopping_a_job(database: Database, data: Path, how: str) -> None:
    run_id = start(database, data, how)
    assert reap_lost(database, data) == []
    stop(database, run_id, grace_seconds=LIMIT_SECONDS if how == "sleep" else 0.5)
    run = get_run(database, run_id)
    assert (run.state, run.error) == (RunState.stopped, None)
    wait_until(lambda: not psutil.pid_exists(run.pid or 0) or psutil.Process(run.pid).status() == "zombie")
    continue_run(database, data, run_id)
    wait_until(lambda: get_run(database, run_id).state is RunState.running)
    assert get_run(database, run_id).launcher["slurm"]["job_id"] != run.launcher["slurm"]["job_id"]
    stop(database, run_id, grace_seconds=0.5)


def test_a_job_that_dies_is_lost(database: Database, data: Path) -> None:
    run_id = start(database, data, "sleep")
    run = get_run(database, run_id)
    os.kill(run.pid or 0, signal.SIGKILL)
    wait_until(lambda: reap_lost(database, data) == [run_id])
    assert get_run(database, run_id).state is RunState.lost


def test_a_job_that_waits(database: Database, data: Path) -> None:
    first = start(database, data, "sleep")
    second = launch(database, data, "job", ["quick"], {}, launcher=LOCAL, after=[first])
    with database.read() as session:
        assert why_waiting(session, data, session.get_one(Run, second)) == f"waits for run {first}"
        run = Run(state=RunState.queued, launcher={"slurm": {"job_id": "17"}})
        assert why_waiting(session, data, run) == "waits in Slurm as job 17"
    stop(database, second)
    stop(database, first)


def test_what_slurm_refuses_is_one_line(database: Database, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, said in (
        ({"cluster": "moon"}, "moon"),
        ({"cluster": "local", "wings": 2}, "wings"),
        ({}, "Slurm did not take the run"),  # there is no Slurm on this machine
    ):
        with pytest.raises(UserError, match=said) as raised:
            launch(database, data, "job", ["sleep"], {}, launcher={"slurm": settings})
        assert "\n" not in str(raised.value)
    assert get_run(database, 1).state is RunState.failed
    with pytest.raises(UserError, match="waits in Slurm's queue"):
        launch(database, data, "job", [], {}, launcher=LOCAL, device="cuda:0")
    really = builtins.__import__

    def without_submitit(name: str, *arguments: Any) -> Any:
        if name == "submitit":
            raise ImportError(name)
        return really(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_submitit)
    with pytest.raises(UserError, match="pip install 'submitit"):
        launch(database, data, "job", [], {}, launcher=LOCAL)


FAKE = {
    # The job's own session stands in for its processes; its first one is the batch shell, which scancel spares.
    "sbatch": 'SLURM_JOB_ID=$$ setsid bash "$1" > /dev/null 2>&1 &\necho $! > "$0.$$"\necho "Submitted batch job $$"',
    "srun": 'while [ "${1#*/bin/python}" = "$1" ]; do shift; done\nexec "$@"',
    "sacct": "echo 'JobID|State|NodeList'",
    "scancel": """
case "$1" in --signal=*) signal=${1#--signal=}; shift;; *) signal=KILL;; esac
shell=$(cat "$(dirname "$0")/sbatch.$1") || exit 1
for pid in $(ps -o pid= --sid "$shell"); do
    if [ "$pid" != "$shell" ] || [ $signal = KILL ]; then kill -$signal "$pid"; fi
done
true
""",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's commands as scripts that keep to what is documented of them."""
    for name, script in FAKE.items():
        file = tmp_path / "cluster" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'cluster'}{os.pathsep}{os.environ['PATH']}")


def find_bytes(folder: Path, wanted: bytes) -> list[Path]:
    """The files below a folder that hold these bytes; but for SQLite's, whose locks end when a reader closes them."""
    found = []
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a job that is running renames and removes files of its own
            if file.is_file() and not file.name.startswith("facereward.db") and wanted in file.read_bytes():
                found.append(file)
    return found


def say_row(database: Database, run_id: int) -> str:
    """All that the database holds of a run."""
    with database.read() as session:
        return str(dict(session.execute(select(Run.__table__).where(Run.id == run_id)).mappings().one()))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("cluster_name", ["local", "slurm"])
def test_the_databases_password_reaches_the_job_and_nobody_else(
    database: Database, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster_name: str
) -> None:
    url = "postgresql+psycopg://me:hush-hush@host/name"
    monkeypatch.setenv("FACEREWARD_DB", url)
    monkeypatch.setenv("PGPASSFILE", "/home/me/pass")
    # What Slurm keeps of a job: the environment of sbatch.
    sbatch = tmp_path / "cluster" / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("#!/bin/sh", f"#!/bin/sh\nenv > {tmp_path / 'kept-by-slurm'}"))
    launcher = {"slurm": {"cluster": cluster_name}}
    run_id = launch(database, data, "job", ["sleep"], {}, launcher=launcher, url=url)
    wait_until(lambda: read_progress(data, run_id))
    (kept,) = find_bytes(tmp_path, b"hush-hush")
    assert kept.parent == data / "job-environments", "outside the runs' folders, whose files admins may download"
    assert (stat.S_IMODE(kept.stat().st_mode), stat.S_IMODE(kept.parent.stat().st_mode)) == (0o600, 0o700)
    words = [word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or []]
    assert not any("hush-hush" in word for word in words)
    assert "hush-hush" not in say_row(database, run_id)
    assert os.environ["FACEREWARD_DB"] == url
    stop(database, run_id, grace_seconds=0.5)
    assert find_bytes(tmp_path, b"hush-hush") == []
    quick = launch(database, data, "job", ["quick"], {}, launcher=launcher, url=url)
    wait_until(lambda: get_run(database, quick).state is RunState.finished)
    result = json.loads((run_folder(data, quick) / "result.json").read_text())
    assert result == {"secret": None, "url_length": len(url), "rest": "/home/me/pass"}
    wait_until(lambda: find_bytes(tmp_path, b"hush-hush") == [])


def test_a_plain_runs_password_is_in_its_environment_alone(database: Database, data: Path, tmp_path: Path) -> None:
    url = "postgresql+psycopg://me:hush-hush@host/name"
    run_id = launch(database, data, "job", ["sleep"], {}, url=url)
    wait_until(lambda: read_progress(data, run_id))
    process = psutil.Process(get_run(database, run_id).pid or 0)
    assert process.environ()["FACEREWARD_DB"] == url
    assert "hush-hush" not in " ".join(process.cmdline()) + say_row(database, run_id)
    stop(database, run_id, grace_seconds=LIMIT_SECONDS)
    assert find_bytes(tmp_path, b"hush-hush") == []


@pytest.mark.usefixtures("cluster")
def test_the_commands_of_slurm(database: Database, data: Path) -> None:
    quick = launch(database, data, "job", ["quick"], {}, launcher={"slurm": {"slurm_partition": "short"}})
    wait_until(lambda: get_run(database, quick).state is RunState.finished)
    job = get_run(database, quick).launcher["slurm"]
    wait_until(lambda: slurm.is_done(job))
    script = next((run_folder(data, quick) / "slurm").glob("*.sh")).read_text()
    assert "#SBATCH --partition=short" in script
    assert "#SBATCH --time=1440" in script

    ids = {}
    for how in ("sleep", "deaf"):
        ids[how] = launch(database, data, "job", [how], {}, launcher={"slurm": {}})
        wait_until(lambda how=how: read_progress(data, ids[how]))
        assert not slurm.is_done(get_run(database, ids[how]).launcher["slurm"])
        assert reap_lost(database, data) == []
    with database.write() as session:
        session.get_one(Run, ids["sleep"]).host = "a node"  # as it would be: stopped from here all the same
    start = time.monotonic()
    stop(database, ids["sleep"], grace_seconds=LIMIT_SECONDS)
    assert time.monotonic() - start < LIMIT_SECONDS - 5, "asked once, by USR2, it ended by itself"
    assert get_run(database, ids["sleep"]).state is RunState.stopped
    deaf = get_run(database, ids["deaf"])
    stop(database, ids["deaf"], grace_seconds=0.5)
    assert get_run(database, ids["deaf"]).state is RunState.stopped
    wait_until(lambda: not psutil.pid_exists(deaf.pid or 0) or psutil.Process(deaf.pid).status() == "zombie")


def test_a_cluster_that_cannot_be_reached(database: Database, data: Path) -> None:
    with database.write() as session:
        waiting = insert_run(session, data, "job", {}, launcher={"slurm": {"job_id": "17", "folder": str(data)}}).id
    with pytest.raises(UserError, match="scancel failed"):
        stop(database, waiting)
    assert get_run(database, waiting).state is RunState.queued, "as it was"
