"""`python -m runs`: all that the pages can do, from a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from db.models import Run, RunState
from db.session import Database
from runs.__main__ import main
from runs.store import read_progress, run_folder
from tests.watching import get_run, wait_until

JOB = """
import argparse, time
from pathlib import Path
from db.session import open_database
from runs.store import open_run
parser = argparse.ArgumentParser()
parser.add_argument("command")
parser.add_argument("--seconds", type=float, default=0)
parser.add_argument("--name")
parser.add_argument("--data", type=Path)
parser.add_argument("--run", type=int)
args = parser.parse_args()
config = {"seconds": args.seconds, "name": args.name}
with open_run(open_database(args.data), args.data, "job work", config, args.run) as run:
    print("hello", args.name, flush=True)
    run.progress(1, 2, loss=0.5)
    time.sleep(args.seconds)
    if args.name == "bad":
        raise ValueError("no good")
    run.progress(2, 2, loss=0.25)
"""


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("FACEREWARD_DB", raising=False)


Say = Callable[..., str]


@pytest.fixture
def say(data: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """What `python -m runs COMMAND …` prints; an error's line where it is refused."""

    def call(command: str, *words: str) -> str:
        capsys.readouterr()
        code = main([command, "--data", str(data), *words])
        printed = capsys.readouterr()
        assert code == (2 if printed.err else 0), printed.err
        return printed.out + printed.err

    return call


def test_from_start_to_delete(database: Database, data: Path, say: Say) -> None:
    said = say("start", "--", "job", "work", "--seconds=600", "--data", "elsewhere")
    assert said.startswith("run 1 (job work) started")
    assert "run 2 (job work) queued, waits for run 1\nWhat is queued starts as soon as" in say(
        "start", "--device", "cuda:0", "--after", "1", "--", "job", "work", "--name", "a b"
    )
    wait_until(lambda: read_progress(data, 1))
    assert get_run(database, 1).arguments == ["--seconds=600"]
    rows = [row.split("\t") for row in say("list").splitlines()]
    assert rows == [
        ["1", "running", "job work", "-", "1 of 2", ""],
        ["2", "queued", "job work", "cuda:0", "-", "waits for run 1"],
    ]
    assert say("list", "--state", "queued").count("\n") == say("list", "--limit", "1").count("\n") == 1
    assert say("list", "--kind", "reward train") == ""
    assert say("stop", "1") == "run 1 stopped\n"
    assert "which was stopped: continue that one" in say("list", "--state", "queued")
    run = get_run(database, 1)
    assert run.config == {"seconds": 600.0, "name": None}, "what the command made of its options"
    shown = say("show", "2")
    assert "command: python -m job work --name 'a b'" in shown
    assert say("continue", "1").startswith("run 1 (job work) started")
    wait_until(lambda: get_run(database, 1).state is RunState.running)
    assert say("delete", "1") == "error: Run 1 is running; stop it first.\n"
    say("stop", "1", "2", "--grace", "5")
    assert "MiB freed" in say("delete", "2", "1")
    assert say("list") == ""
    assert list((data / "runs").iterdir()) == []


def test_show_says_what_went_wrong(database: Database, data: Path, say: Say) -> None:
    say("start", "--", "job", "work", "--name", "bad")
    wait_until(lambda: get_run(database, 1).state is RunState.failed)
    shown = say("show", "1", "--lines", "2")
    assert "run 1: job work, failed" in shown
    assert "error: ValueError: no good" in shown
    assert 'progress: 1 of 2 {"loss": 0.5}' in shown
    assert f"folder: {run_folder(data, 1)}" in shown
    assert "| ValueError: no good" in shown
    assert say("show", "7") == "error: There is no run 7.\n"


def test_what_is_refused_is_one_line(database: Database, say: Say) -> None:
    assert say("start", "--", "reward").startswith("error: Give a package and its command")
    assert say("start", "--device", "gpu", "--", "job", "work").startswith("error: There is no device 'gpu'")
    assert say("start", "--slurm", "fast", "--", "job", "work").startswith("error: --slurm 'fast' is not NAME=VALUE")
    assert say("stop", "3") == "error: Run 3 is not running.\n"
    assert say("stop", "3", "--machine-is-gone") == "error: Run 3 is not running on another machine.\n"
    assert say("continue", "3") == "error: There is no run 3.\n"
    assert say("supervise", "--cpu-slots", "0") == "error: --cpu-slots: Give 1 or more, got '0'.\n"
    assert say("round", "--target-accuracy", "2").startswith("error: --target-accuracy: Give less than 1, got")
    assert say("list") == ""


def test_a_run_whose_machine_is_gone(database: Database, data: Path, say: Say) -> None:
    say("start", "--", "job", "work")
    wait_until(lambda: get_run(database, 1).state is RunState.finished)
    with database.write() as session:
        run = session.get_one(Run, 1)
        run.state, run.host = RunState.running, "elsewhere"
    assert "stop it there" in say("stop", "1")
    assert say("stop", "1", "--machine-is-gone") == "run 1 lost\n"
    assert get_run(database, 1).error == "the machine elsewhere is gone"
    say("continue", "1")
    wait_until(lambda: get_run(database, 1).state is RunState.finished)


def test_a_round_is_shown_and_queued(database: Database, data: Path, say: Say) -> None:
    plan = say("round", "--dry-run", "--max-refl-steps", "3", "--seeds", "0", "1")
    assert "8. make pairs of the new images to judge\n   python -m annotate pair\n" in plan
    assert "--max-steps=3" in plan
    assert say("list") == ""
    started = say("round", "--device", "cuda:7")  # which is not here, so that nothing starts
    assert "run 1 (annotate measure) queued, waits for cuda:7, which this machine" in started
    assert "run 8 (annotate pair) queued, waits for run 7" in started
    assert say("round", "--dry-run").startswith("round 2:")
    say("stop", *map(str, range(1, 9)))


def test_from_a_shell_and_a_terminal_run_is_recorded(database: Database, data: Path, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "annotate", "pair", "--data", str(data), "--per-source", "2"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = get_run(database, 1)
    assert (run.state, run.arguments, run.cwd) == (RunState.finished, ["--per-source", "2"], str(tmp_path))
    assert (run.device, run.launcher, run.after) == (None, {}, [])
    command = [sys.executable, "-m", "runs", "show", "1", "--data", str(data)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "command: python -m annotate pair --per-source 2" in done.stdout
