"""Runs as real processes: they finish, fail, are stopped, are killed, and outlive who launched them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from db.errors import UserError
from db.models import Run, RunState
from db.session import Database, open_database
from runs.launch import launch
from runs.stop import stop
from runs.store import add_run, is_alive, read_progress, reap_lost, run_folder
from tests.watching import get_run, wait_for_state, wait_until

ROOT = Path(__file__).resolve().parents[3]
SLEEPER = """
import argparse, os, signal, subprocess, sys, time
from pathlib import Path
from db.session import open_database
from runs.store import RunStopped, open_run

parser = argparse.ArgumentParser()
parser.add_argument("how")
parser.add_argument("--data", type=Path)
parser.add_argument("--run", type=int)
args = parser.parse_args()
database = open_database(args.data)
if args.how == "late":
    print("starting", flush=True)
    time.sleep(600)
with open_run(database, args.data, "sleeper", {}, args.run) as run:
    worker = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); "
                               "print('up', flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
    worker.stdout.readline()
    run.progress(1, 9, worker=worker.pid)
    if args.how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        run.progress(2, 9, worker=worker.pid)
    print("half way", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long command `python -m sleeper` that runs.launch can start."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.setattr("runs.process.PROJECT_ROOT", f"{tmp_path}{os.pathsep}{ROOT}")


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def launch_sleeper(database: Database, data: Path, how: str, done: int = 1) -> tuple[int, int]:
    """(run id, pid of its worker), in the middle of its work."""
    run_id = launch(database, data, "sleeper", [how], {"how": how})
    wait_until(lambda: (read_progress(data, run_id) or {"done": 0})["done"] >= done)
    return run_id, (read_progress(data, run_id) or {})["worker"]


def test_a_launched_run_finishes_with_its_result(database: Database, data: Path) -> None:
    run_id = launch(database, data, "annotate pair", ["--seed", "3"], {"seed": 3})
    run = wait_for_state(database, run_id, RunState.finished, RunState.failed)
    assert (run.state, run.error) == (RunState.finished, None)
    assert json.loads((run_folder(data, run_id) / "result.json").read_text())["added"] == 0
    assert "0 pairs added" in (run_folder(data, run_id) / "log.txt").read_text()
    assert run.pid is not None
    wait_until(lambda: not psutil.pid_exists(run.pid or 0))  # waited for, so no zombie is left


def test_a_launched_run_that_is_refused_fails_with_the_reason(database: Database, data: Path) -> None:
    run_id = launch(database, data, "annotate pair", ["--against", "nobody"], {})
    run = wait_for_state(database, run_id, RunState.finished, RunState.failed)
    assert (run.state, run.error) == (RunState.failed, "There is no method called 'nobody'. Known: none yet.")
    assert "Traceback" not in (run_folder(data, run_id) / "log.txt").read_text()


def test_a_process_that_dies_before_it_claims_its_run(database: Database, data: Path) -> None:
    run_id = launch(database, data, "annotate pair", ["--per-source", "many"], {})
    wait_until(lambda: reap_lost(database, data) == [run_id])
    run = get_run(database, run_id)
    assert run.state is RunState.failed
    assert "--per-source: Give a whole number, got 'many'" in (run.error or "")


def test_a_process_that_cannot_start(database: Database, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(UserError, match="Run 1 could not be started"):
        launch(database, data, "annotate pair", [], {})
    run = get_run(database, 1)
    assert run.state is RunState.failed
    assert "could not be started" in (run.error or "")


@pytest.mark.usefixtures("sleeper")
def test_stopping_in_the_middle_ends_the_run_and_its_workers(database: Database, data: Path) -> None:
    run_id, worker = launch_sleeper(database, data, "plain")
    stop(database, run_id)
    run = get_run(database, run_id)
    assert (run.state, run.error) == (RunState.stopped, None)
    assert not is_alive(run)
    wait_until(lambda: is_gone(worker))  # the worker ignores SIGTERM
    assert "Traceback" not in (run_folder(data, run_id) / "log.txt").read_text()
    with pytest.raises(UserError, match=f"Run {run_id} is not running"):
        stop(database, run_id)


@pytest.mark.usefixtures("sleeper")
def test_a_run_that_does_not_listen_is_killed(database: Database, data: Path) -> None:
    run_id, worker = launch_sleeper(database, data, "stubborn", done=2)
    stop(database, run_id, grace_seconds=0.3)
    run = get_run(database, run_id)
    assert run.state is RunState.stopped
    assert not is_alive(run)
    wait_until(lambda: is_gone(worker))


@pytest.mark.usefixtures("sleeper")
def test_stopping_a_process_before_it_claims_its_run(database: Database, data: Path) -> None:
    run_id = launch(database, data, "sleeper", ["late"], {})
    wait_until(lambda: "starting" in (run_folder(data, run_id) / "log.txt").read_text())
    assert get_run(database, run_id).state is RunState.queued
    stop(database, run_id)
    assert not is_alive(get_run(database, run_id))
    assert get_run(database, run_id).state is RunState.stopped


def test_a_stopped_queued_run_is_not_started_any_more(database: Database, data: Path) -> None:
    run_id = add_run(database, data, "annotate pair", {})
    stop(database, run_id)
    assert get_run(database, run_id).state is RunState.stopped
    command = [sys.executable, "-m", "annotate", "pair", "--data", str(data), "--run", str(run_id)]
    late = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert late.returncode == 2
    assert f"Run {run_id} is not waiting to be started" in late.stderr
    assert get_run(database, run_id).state is RunState.stopped


@pytest.mark.usefixtures("sleeper")
def test_a_killed_run_is_lost(database: Database, data: Path) -> None:
    run_id, worker = launch_sleeper(database, data, "plain")
    wait_until(lambda: "half way" in (run_folder(data, run_id) / "log.txt").read_text())
    assert reap_lost(database, data) == []
    pid = get_run(database, run_id).pid
    assert pid is not None
    os.killpg(pid, signal.SIGKILL)
    wait_until(lambda: reap_lost(database, data) == [run_id])
    run = get_run(database, run_id)
    assert (run.state, run.error) == (RunState.lost, "the process ended without saying why; its last line: half way")
    assert run.ended_at is not None
    wait_until(lambda: is_gone(worker))


def test_a_run_outlives_a_killed_launcher(tmp_path: Path, data: Path) -> None:
    open_database(data).close()
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    launcher = (
        "import sys, time\nfrom pathlib import Path\n"
        "import sys, time\nfrom pathlib import Path\n"
        "from db.session import open_database\nfrom runs import launch, process\n"
        f"process.PROJECT_ROOT = {f'{tmp_path}{os.pathsep}{ROOT}'!r}\n"
        f"data = Path({str(data)!r})\n"
        "print(launch.launch(open_database(data), data, 'sleeper', ['plain'], {}), flush=True)\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", launcher], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    run_id = int(process.stdout.readline())
    wait_until(lambda: read_progress(data, run_id))
    os.killpg(process.pid, signal.SIGKILL)  # all that shares the launcher's terminal goes with it
    process.communicate()
    database = open_database(data)
    assert reap_lost(database, data) == []
    run = get_run(database, run_id)
    assert run.state is RunState.running
    assert is_alive(run)
    stop(database, run_id)
    assert get_run(database, run_id).state is RunState.stopped
    database.close()


def test_a_run_of_this_very_process_is_not_stopped(database: Database, data: Path) -> None:
    run_id = add_run(database, data, "annotate pair", {})
    with database.write() as session:
        run = session.get(Run, run_id)
        assert run is not None
        run.state, run.pid = RunState.running, os.getpid()
    with pytest.raises(UserError, match="part of this program"):
        stop(database, run_id)
    assert get_run(database, run_id).state is RunState.running


def test_another_users_run_is_left_as_it_is(database: Database, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = add_run(database, data, "annotate pair", {})
    with database.write() as session:
        run = session.get(Run, run_id)
        assert run is not None
        run.state, run.pid, run.pid_started = RunState.running, 1, psutil.Process(1).create_time()

    def refuse(_pid: int, _signal: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(os, "killpg", refuse)
    with pytest.raises(UserError, match="belongs to another user"):
        stop(database, run_id)
    assert get_run(database, run_id).state is RunState.running


def test_the_database_url_is_not_on_the_command_line(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    database = open_database(data, url)
    commands: list[list[str]] = []
    popen = subprocess.Popen

    def remember(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        commands.append(command)
        return popen(command, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(subprocess, "Popen", remember)
    run_id = launch(database, data, "annotate pair", [], {}, url=url)
    assert wait_for_state(database, run_id, RunState.finished, RunState.failed).state is RunState.finished
    assert commands
    assert not any("elsewhere" in part for command in commands for part in command)
    assert not (data / "facereward.db").exists()
    database.close()
