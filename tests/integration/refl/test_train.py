"""`python -m refl train` and `evaluate` as a person types them: killed and continued, on two processes, refused."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

torch = pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("diffusers", reason="needs diffusers: `make install`")

from safetensors.torch import load_file  # noqa: E402

from db.models import Run, RunState  # noqa: E402
from db.session import open_database  # noqa: E402
from refl.__main__ import main  # noqa: E402
from refl.restorers.tiny import save_tiny  # noqa: E402
from refl.tune.data import Face  # noqa: E402
from reward.model.checkpoint import save_model  # noqa: E402
from runs.store import RunStopped  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.forked import start_module  # noqa: E402
from tests.making import run_python  # noqa: E402
from tests.unit.refl.conftest import MICRO, faces, make_micro_restorer, make_micro_reward  # noqa: E402, F401
from tests.watching import wait_until  # noqa: E402

CONFIG = """
[trajectory]
steps = 4
gradient_window = [0, 1]
[loss]
perceptual = "gmsd"
[live_reward]
reward_every_steps = 2
reward_learning_rate = 1e-3
[train]
max_steps = 12
batch_size = 4
micro_batch_size = 2
learning_rate = 1e-3
ema_decay = 0.9
monitor_every_steps = 4
monitor_faces = 2
checkpoint_every_steps = 1
log_every_steps = 1
workers = 0
[degradation]
blur_kernel_px = 5
blur_sigma_px = [0.5, 1.0]
downsample_factor = [1.0, 2.0]
"""
TWO_PROCESSES = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"),
)
"""After python, before a command, with ACCELERATE_USE_CPU=true in the environment: accelerate's own --cpu starts one
process, whatever the number."""
TRAINED = ("trained.safetensors", "reward/changes.safetensors")


@pytest.fixture
def command(data: Path, tmp_path: Path, faces: list[Face]) -> Callable[..., list[str]]:  # noqa: F811
    """`command(out, "--flag=value")`: the training of the micro restorer with a micro reward model."""
    save_tiny(make_micro_restorer(), MICRO, tmp_path / "restorer")
    save_model(make_micro_reward(tmp_path), tmp_path / "reward")
    (tmp_path / "config.toml").write_text(CONFIG)
    folder = faces[0].path.parent

    def make(out: Path, *flags: str) -> list[str]:
        words = ["-m", "refl", "train", "--config", str(tmp_path / "config.toml"), "--data", str(data)]
        words += ["--restorer", str(tmp_path / "restorer"), "--reward", str(tmp_path / "reward")]
        return [*words, "--faces", str(folder), "--held-out", str(folder), "--out", str(out), *flags]

    return make


def run(words: list[str]) -> tuple[int, str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    ended = run_python(*words, env=environment)
    return ended.returncode, ended.stdout, ended.stderr


def kill_in_the_middle(words: list[str], out: Path, rng: random.Random) -> None:
    """Let it take some steps, then SIGKILL."""
    wanted, log = rng.randint(1, 8), out.with_suffix(".log")
    process = start_module(log, words)

    def is_due() -> bool:
        try:
            return bool(json.loads((out / "last" / "training.json").read_text())["step"] >= wanted)
        except (OSError, ValueError):
            return not process.is_alive()  # not there yet, or just being replaced

    wait_until(is_due, pause_seconds=0.01)
    assert process.is_alive(), log.read_text()
    time.sleep(rng.random() * 0.2)
    process.kill()
    process.join()


def run_here(words: list[str]) -> int:
    """The exit code of the command in this process, which has torch loaded."""
    return main(words[2:])


def check_kills(
    command: Callable[..., list[str]], tmp_path: Path, rounds: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Every killed and continued training ends with the weights of the one that was not."""
    assert run_here(command(tmp_path / "whole")) == 0
    rng = random.Random(0)
    for number in range(rounds):
        out = tmp_path / f"killed{number}"
        kill_in_the_middle(command(out), out, rng)
        caplog.clear()
        assert run_here(command(out)) == 0
        assert "continuing after step" in caplog.text
        for folder in ("last", "tuned"):
            for file in TRAINED:
                whole, continued = (load_file(tmp_path / name / folder / file) for name in ("whole", f"killed{number}"))
                assert all(torch.equal(value, continued[key]) for key, value in whole.items()), (folder, file)


@pytest.mark.slow  # unit/refl/tune/test_continuing.py kills and continues without commands
def test_a_killed_training_continues_to_the_same_weights_and_is_evaluated(
    command: Callable[..., list[str]], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_kills(command, tmp_path, 1, caplog)
    assert (tmp_path / "whole" / "grids" / "000012.png").is_file()
    database = open_database(data)
    with database.read() as session:
        kinds = [(row.kind, row.state) for row in session.scalars(select(Run))]
    database.close()
    assert kinds.count(("refl train", RunState.finished)) == 2
    words = ["-m", "refl", "evaluate", "--method", str(tmp_path / "restorer"), "--data", str(data)]
    words += ["--method", str(tmp_path / "whole" / "tuned"), "--faces", str(tmp_path / "faces")]
    words += ["--reward", f"frozen={tmp_path / 'reward'}", "--degradation", str(tmp_path / "config.toml")]
    assert run_here([*words, "--seeds", "0", "1", "--out", str(tmp_path / "report")]) == 0
    with open(tmp_path / "report" / "summary.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["method"] for row in rows} == {row["method"] for row in rows if row["metric"] == "reward frozen"}
    assert {"psnr", "saturation", "reward frozen"} <= {row["metric"] for row in rows}
    report = (tmp_path / "report" / "report.md").read_text()
    assert "## synthetic: 8 faces" in report
    assert "HF_HUB_OFFLINE" in report or "weights" in report.lower()


@pytest.mark.slow
def test_five_killed_trainings_continue_to_the_same_weights(
    command: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_kills(command, tmp_path, 5, caplog)


@pytest.mark.slow
def test_two_processes_train_as_one(command: Callable[..., list[str]], tmp_path: Path) -> None:
    flags = ("--max-steps=2", "--micro-batch-size=1", "--monitor-every-steps=2")
    one, two = tmp_path / "one", tmp_path / "two"
    code, _, err = run(command(one, *flags))
    assert code == 0, err
    code, _, err = run([*TWO_PROCESSES, *command(two, *flags)])
    assert code == 0, err
    assert "training on 2 processes" in err
    for name in TRAINED:
        alone, together = (load_file(folder / "last" / name) for folder in (one, two))
        assert set(alone) == set(together)
        # AdamW takes steps of 1e-3 whatever the gradient's length, so what rounding leaves of one shows; two steps
        # of a wrong gradient would be 2e-3 apart
        for key, tensor in alone.items():
            torch.testing.assert_close(together[key], tensor, rtol=0, atol=1e-4)
    assert sorted(path.name for path in (two / "grids").iterdir()) == ["000000.png", "000002.png"]


@pytest.mark.slow
def test_an_ablation_trains_its_variants_and_compares_them(
    command: Callable[..., list[str]], data: Path, tmp_path: Path
) -> None:
    faces_folder = str(tmp_path / "faces")
    command(tmp_path / "unused")  # writes the restorer, the reward model and the config
    words = ["-m", "refl", "ablate", str(tmp_path / "config.toml"), "--data", str(data), "--only", "no reward"]
    words += ["--restorer", str(tmp_path / "restorer"), "--reward", str(tmp_path / "reward"), "--faces", faces_folder]
    words += ["--test-faces", faces_folder, "--out", str(tmp_path / "ablation")]
    words += ["--with", "--max-steps=2", "--monitor-every-steps=0"]
    code, said, err = run(words)
    assert code == 0, err
    assert f"report: {tmp_path / 'ablation' / 'report' / 'report.md'}" in said
    with open(tmp_path / "ablation" / "report" / "summary.csv", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "reward frozen"]
    assert [row["method"] for row in rows][1:] == ["full-tuned", "no-reward-tuned"]
    full, without = (
        json.loads((tmp_path / "ablation" / name / "last" / "training.json").read_text())
        for name in ("full", "no-reward")
    )
    assert (full["step"], full["config"]["loss"]["reward_weight"]) == (2, 0.005)
    assert (without["step"], without["config"]["loss"]["reward_weight"]) == (2, 0)
    code, _, err = run([*words[:7], "no nose", *words[8:]])
    assert code == 2
    assert "There is no variant 'no nose'. Name one of full, gdpo, grpo, no reward" in err


def test_what_cannot_be_is_refused_in_one_line(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, said in (
        (("--reward-weight=-1",), "--reward-weight: Give 0 or more, got '-1'"),
        (("--replay-pairs=4",), "replay_pairs needs labelled pairs"),
        (("--gradient-window", "2", "1"), "The low end comes first"),
    ):
        assert run_here(command(tmp_path / "out", *flags)) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
        assert said in line


def test_two_trainings_never_share_a_folder(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = command(out, "--max-steps=100000", "--checkpoint-every-steps=1")
    first = start_module(tmp_path / "log", words)
    wait_until(lambda: (out / "last").exists() or not first.is_alive())
    assert first.is_alive(), (tmp_path / "log").read_text()
    assert run_here(words) == 2
    said = capsys.readouterr().err
    assert f"error: Another run writes into {out} (process {first.pid} on " in said
    first.kill()
    first.join()
    step = json.loads((out / "last" / "training.json").read_text())["step"]
    changed = command(out, "--max-steps=100000", f"--checkpoint-every-steps={step + 1}")
    assert run_here([*changed, "--monitor-every-steps=0"]) == 2  # refused for its settings, no more for the lock
    assert "was trained with monitor_every_steps" in capsys.readouterr().err


def test_relative_and_absolute_paths_are_one_training(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun by relative paths, continued by absolute ones from elsewhere, and by those of a copy."""
    out = tmp_path / "out"
    flags = ["--max-steps=4", "--monitor-every-steps=0", "--checkpoint-every-steps=1"]
    monkeypatch.chdir(tmp_path)
    relative = [word.replace(f"{tmp_path}/", "") for word in command(out, *flags)]
    assert "restorer" in relative
    ended = threading.Event()

    def end(*_: object) -> None:
        if not ended.is_set():
            ended.set()
            os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr("training.run.format_progress", end)
    with pytest.raises(RunStopped):
        run_here(relative)
    assert json.loads((out / "last" / "training.json").read_text())["step"] == 2
    assert json.loads((out / "last" / "trained.json").read_text())["restorer"] == str(tmp_path / "restorer")
    shutil.copytree(tmp_path / "restorer", tmp_path / "copy")
    monkeypatch.chdir("/")
    words = [str(tmp_path / "copy") if word == str(tmp_path / "restorer") else word for word in command(out, *flags)]
    assert run_here(words) == 0
    assert json.loads((out / "last" / "training.json").read_text())["step"] == 4
