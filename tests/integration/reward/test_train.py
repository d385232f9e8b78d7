"""`python -m reward train` as a person types it: killed and continued, on two processes, refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("open_clip", reason="needs open_clip: `make install`")

from db.models import Run, RunState
from db.session import open_database
from reward.__main__ import main
from runs.hold import hold_folder
from tests.conftest import ROOT
from tests.forked import run_module, run_two, start_module
from tests.making import run_python
from tests.unit.reward.conftest import architecture_file, make_dataset  # noqa: F401
from tests.unit.reward.train.test_train import weights_of
from tests.watching import LIMIT_SECONDS, wait_until

FLAGS = {
    "image-size-px": 32,
    "unlocked-image-groups": 5,
    "max-steps": 30,
    "batch-size": 8,
    "warmup-steps": 2,
    "validate-every-steps": 10,
    "checkpoint-every-steps": 1,
    "log-every-steps": 1,
    "workers": 0,
}


@pytest.fixture
def command(data: Path, make_dataset: Callable[..., Path], architecture_file: Path) -> Callable[..., list[str]]:  # noqa: F811
    """The training of the small model on the small dataset; `command("out", flag=value)`."""
    dataset = make_dataset(change=lambda row: row.update(lq=row["image_a"], sha256_lq=row["sha256_a"]))

    def make(out: Path, **changes: object) -> list[str]:
        flags = FLAGS | {name.replace("_", "-"): value for name, value in changes.items()}
        words = ["-m", "reward", "train", "--preset", "tiny", "--dataset", str(dataset), "--data", str(data)]
        words += ["--out", str(out), "--architecture", str(architecture_file)]
        return words + [word for name, value in flags.items() for word in (f"--{name}", str(value))]

    return make


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    return run_python(*words, env=environment)


def kill_in_the_middle(words: list[str], out: Path, rng: random.Random) -> None:
    """Start the command and end it, without a word, somewhere after its first checkpoint."""
    process = start_module(out.with_suffix(".log"), words)
    wait_until(lambda: (out / "last").exists() or not process.is_alive(), pause_seconds=0.01)
    time.sleep(rng.uniform(0, 0.6))
    process.kill()
    process.join()


def check_kills(command: Callable[..., list[str]], tmp_path: Path, rounds: int) -> None:
    whole = run(command(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    assert (tmp_path / "whole" / "best" / "README.md").read_text().startswith("# Reward model whole")
    rng = random.Random(rounds)
    for number in range(rounds):
        out = tmp_path / f"killed{number}"
        kill_in_the_middle(command(out), out, rng)
        again = run(command(out))
        assert again.returncode == 0, again.stderr
        for folder in ("last", "best"):
            one, other = weights_of(tmp_path / "whole" / folder), weights_of(out / folder)
            assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.slow
def test_a_killed_training_continues_to_the_same_weights(command: Callable[..., list[str]], tmp_path: Path) -> None:
    check_kills(command, tmp_path, rounds=2)


@pytest.mark.slow
def test_ten_killed_trainings_continue_to_the_same_weights(command: Callable[..., list[str]], tmp_path: Path) -> None:
    check_kills(command, tmp_path, rounds=10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_ends_it_with_a_checkpoint_and_its_run_is_stopped(
    command: Callable[..., list[str]], data: Path, tmp_path: Path, number: int
) -> None:
    out = tmp_path / "out"
    words = command(out, max_steps=100_000, checkpoint_every_steps=50_000, validate_every_steps=0)
    log = tmp_path / "log"
    process = start_module(log, words)
    wait_until(lambda: not process.is_alive() or (log.exists() and "step 3 " in log.read_text()))
    os.kill(process.pid or 0, number)
    process.join(LIMIT_SECONDS)
    assert process.exitcode == 128 + number, log.read_text()
    assert "the same command continues" in log.read_text()
    assert (out / "last").is_dir()
    with open_database(data).read() as session:
        assert session.scalars(select(Run)).one().state is RunState.stopped


@pytest.mark.parametrize(
    "fields", [pytest.param({}, marks=pytest.mark.slow), {"text_mode": "input+learned", "members": 2}]
)
def test_two_processes_equal_one_with_the_same_batch(
    command: Callable[..., list[str]], data: Path, tmp_path: Path, fields: dict[str, object]
) -> None:
    """Losses and gradients of the first steps: of later weights AdamW makes what rounding leaves of small gradients."""
    changes = {"max_steps": 3, "validate_every_steps": 0, "batch_size": 7, **fields}
    found = []
    for name in ("one", "two"):
        words = command(tmp_path / name, **changes)
        if name == "one":  # here, where torch is loaded
            assert main(words[2:]) == 0
        else:
            run_two(tmp_path / "log", run_module, words[1:])
            assert "training on 2 processes" in (tmp_path / "log.0").read_text()
        with open_database(data).read() as session:
            newest = max(session.scalars(select(Run)).all(), key=lambda one: one.id)
        found.append([json.loads(line) for line in (data / "runs" / str(newest.id) / "progress.jsonl").open()])
    for alone, together in zip(*found, strict=True):
        for value in ("loss", "gradient_norm", "rewards/margins"):
            # ten times what was measured over ATEN_CPU_CAPABILITY unset, avx2 and default
            assert together[value] == pytest.approx(alone[value], rel=1e-3, abs=1e-6), value


def test_two_trainings_never_share_a_folder(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hold_folder(tmp_path / "out"):
        assert main(command(tmp_path / "out")[2:]) == 2
    assert f"error: Another run writes into {tmp_path / 'out'} (process " in capsys.readouterr().err
    assert not (tmp_path / "out" / "last").exists()


def test_what_is_wrong_is_one_line(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes, said in (
        ({"batch_size": 0}, "error: --batch-size: Give 1 or more, got '0'."),
        ({"text_mode": "caption"}, "has a caption, but text_mode is caption"),
        ({"weights": tmp_path / "none.pt"}, "none.pt"),
    ):
        assert main(command(tmp_path / "out", **changes)[2:]) == 2
        assert said in capsys.readouterr().err
