"""Real trainings as runs: by accelerate on two processes, and from a terminal, continued by the app."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("open_clip", reason="needs open_clip: `make install`")

from db.models import RunState
from db.session import Database
from runs.launch import continue_run, launch
from runs.process import command_of
from runs.stop import stop
from runs.store import read_progress, run_folder
from tests.conftest import ROOT
from tests.unit.reward.conftest import architecture_file, make_dataset  # noqa: F401
from tests.watching import LIMIT_SECONDS, get_run, wait_until

Arguments = Callable[[Path, int], list[str]]


@pytest.fixture
def arguments(make_dataset: Callable[..., Path], architecture_file: Path) -> Arguments:  # noqa: F811
    """What follows `reward train` for the small model on the small dataset: `arguments(out, max_steps)`."""
    dataset = make_dataset()

    def make(out: Path, max_steps: int) -> list[str]:
        flags = {
            "preset": "tiny",
            "dataset": dataset,
            "out": out,
            "architecture": architecture_file,
            "image-size-px": 32,
            "unlocked-image-groups": 5,
            "max-steps": max_steps,
            "batch-size": 6,
            "warmup-steps": 2,
            "validate-every-steps": 0,
            "checkpoint-every-steps": 10_000,
            "log-every-steps": 1,
            "workers": 0,
        }
        return [f"--{name}={value}" for name, value in flags.items()]

    return make


@pytest.fixture(autouse=True)
def end_runs(tmp_path: Path) -> Iterator[None]:
    """No process of a test outlives it."""
    yield
    for process in processes_of(f"--out={tmp_path / 'out'}"):
        process.kill()


def processes_of(words: str) -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if words in (one.info["cmdline"] or [])]


@pytest.mark.slow
def test_two_processes_are_stopped_with_a_checkpoint_and_continued(
    database: Database, data: Path, tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out, steps = tmp_path / "out", 300
    words = arguments(out, steps)
    run_id = launch(database, data, "reward train", words, {}, device="cpu", launcher={"processes": 2, "machines": 1})
    wait_until(lambda: (read_progress(data, run_id) or {"done": 0})["done"] >= 2)
    typed = ["env", "ACCELERATE_USE_CPU=true", "python", "-m", "accelerate.commands.launch", "--num_processes", "2"]
    assert command_of(get_run(database, run_id))[:7] == typed
    assert len(processes_of(f"--out={out}")) == 3, "accelerate and its two"
    stop(database, run_id)
    assert get_run(database, run_id).state is RunState.stopped, (run_folder(data, run_id) / "log.txt").read_text()
    assert (out / "last").is_dir()
    wait_until(lambda: not processes_of(f"--out={out}"))
    done = (read_progress(data, run_id) or {})["done"]
    assert 2 <= done < steps
    continue_run(database, data, run_id)
    wait_until(lambda: get_run(database, run_id).state in (RunState.finished, RunState.failed))
    log = (run_folder(data, run_id) / "log.txt").read_text()
    assert get_run(database, run_id).state is RunState.finished, log
    assert f"continuing after step {done} of {steps}" in log
    assert (out / "best").is_dir()


@pytest.mark.slow  # the page continues a training as the command does, which quicker tests show
def test_a_training_of_a_terminal_is_continued_like_any_other(
    database: Database, data: Path, tmp_path: Path, arguments: Arguments
) -> None:
    words = arguments(Path("out"), 60)
    command = [sys.executable, "-m", "reward", "train", "--data", str(data), *words]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    )
    wait_until(lambda: (read_progress(data, 1) or {"done": 0})["done"] >= 2)
    run = get_run(database, 1)
    assert (run.arguments, run.cwd, run.device, run.launcher) == (words, str(tmp_path), "cpu", {})
    assert run.host
    stop(database, 1)
    process.wait(LIMIT_SECONDS)
    assert get_run(database, 1).state is RunState.stopped
    done = (read_progress(data, 1) or {})["done"]
    continue_run(database, data, 1)
    wait_until(lambda: get_run(database, 1).state in (RunState.finished, RunState.failed))
    assert f"continuing after step {done} of 60" in (run_folder(data, 1) / "log.txt").read_text()
    assert get_run(database, 1).state is RunState.finished
    assert get_run(database, 1).config["train"]["max_steps"] == 60
