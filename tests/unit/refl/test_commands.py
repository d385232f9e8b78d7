"""The commands of refl as typed values: their flags, the folders that follow from them, what a run records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from db.errors import UserError
from refl.commands import COMMANDS
from refl.evaluate.command import EVALUATE
from refl.evaluate.options import name_rewards
from refl.pretrain.command import PRETRAIN
from refl.restore.command import RESTORE
from refl.tune.ablate import ABLATE
from refl.tune.command import TRAIN
from refl.tune.config import ReflConfig, load_refl_config
from runs.options import Command, read_words
from tests.conftest import ROOT

TUNE = ["--preset=tiny-refl", "--restorer=tiny", "--reward=frm"]
LORA = str(ROOT / "refl" / "tune" / "configs" / "lora-16gb.toml")
TINY = str(ROOT / "refl" / "pretrain" / "configs" / "tiny.toml")
FOLDERS = [
    (TRAIN, ["--preset=tiny-refl", "--restorer=tiny", "--reward=hps-v2.1"], "restorers/tiny-tiny-refl-ba35e101"),
    (
        TRAIN,
        [
            *("--preset=paper", "--restorer=diffbir-v1", "--reward=frm/best", "--faces=faces", "--dataset=./d/"),
            *("--held-out=held", "--max-steps=7", "--micro-batch-size=2"),
        ],
        "restorers/diffbir-v1-paper-a6c9173f",
    ),
    (
        TRAIN,
        [
            *("--preset=osediff-24gb", "--restorer=restorers/mine", "--reward=a=frm", "--gradient-window", "0", "0"),
            *("--no-gradient-checkpointing", "--eta", "0", "0.5", "--blur-kernel-px=5", "--learning-rate=1e-3"),
        ],
        "restorers/mine-osediff-24gb-f5d24919",
    ),
    (
        TRAIN,
        [f"--config={LORA}", "--restorer=tiny", "--reward=frm", "--seed=3", "--use-prompt"],
        "restorers/tiny-lora-16gb-9691ab6b",
    ),
    (PRETRAIN, ["--preset=tiny", "--faces", "/faces/one", "/faces/two"], "restorers/tiny-c6e25c9e"),
    (
        PRETRAIN,
        [
            *("--preset=tiny", "--faces=/faces", "--eta=0.5", "--crop-scale", "0.5", "1", "--workers=2"),
            *("--phase=vae", "--unet-channels", "64", "64", "96"),
        ],
        "restorers/tiny-e8ab4bce",
    ),
    (PRETRAIN, [f"--config={TINY}", "--faces=/faces"], "restorers/tiny-66b0a2d0"),
    (EVALUATE, ["--method=tiny"], "evaluations/tiny-f1d73e3c"),
    (
        EVALUATE,
        [
            *("--method=tiny", "--method=mine=runs/1/tuned", "--faces=faces/", "--wild", "../wild"),
            *("--reward=frozen=frm", "--seeds", "0", "5", "--limit=3", "--use-prompt", "--dtype=bfloat16"),
            *("--batch-size=9", "--device=cpu", "--weights=w"),
        ],
        "evaluations/tiny-66c28cea",
    ),
    (
        EVALUATE,
        ["--method=a=restorers/b", "--degradation=tiny-refl", "--steps=3", "--image-size-px=64"],
        "evaluations/b-ee1b6974",
    ),
]
"""(command, its words, the folder that version 0.1 at commit a88e5d9 chose for them)."""


@pytest.mark.parametrize(("command", "words", "folder"), FOLDERS, ids=[folder for _, _, folder in FOLDERS])
def test_the_folders_of_older_trainings_and_evaluations_are_found_again(
    command: Command, words: list[str], folder: str, tmp_path: Path
) -> None:
    settled = command.settle(read_words(command, words), tmp_path / "data")
    assert settled.out == tmp_path / "data" / folder
    assert command.settle(settled, tmp_path / "elsewhere") == settled


@pytest.mark.parametrize(("command", "words", "_folder"), FOLDERS, ids=[folder for _, _, folder in FOLDERS])
def test_options_are_written_as_words_that_give_them_back(command: Command, words: list[str], _folder: str) -> None:
    options = read_words(command, words)
    assert read_words(command, command.words(options)) == options


def test_a_run_is_recorded_with_what_it_is_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*TUNE, "--faces=faces", "--held-out=held", "--dataset=pairs", "--weights=w", "--max-steps=7"]
    options = TRAIN.settle(read_words(TRAIN, words), Path("data"))
    kinds = {(one["option"], one["kind"], one["value"]) for one in TRAIN.inputs(options)}
    assert kinds == {
        ("restorer", "tunable", "tiny"),
        ("reward", "judge", "frm"),
        ("faces", "faces", str(tmp_path / "faces")),
        ("held_out", "faces", str(tmp_path / "held")),
        ("dataset", "dataset", str(tmp_path / "pairs")),
    }
    (out,) = TRAIN.outputs(options)
    assert Path(out["value"]).parent == tmp_path / "data" / "restorers"
    config = TRAIN.config(options)
    assert (config["out"], config["preset"], config["train"]["max_steps"]) == (out["value"], "tiny-refl", 7)
    assert {"trajectory", "loss", "live_reward", "train", "degradation"} <= set(config)


def test_the_config_of_a_run_is_settings_again(tmp_path: Path) -> None:
    """A run's config.json gives its settings, what it learned from, and where it wrote."""
    options = TRAIN.settle(read_words(TRAIN, [*TUNE, "--faces=faces", "--max-steps=7"]), tmp_path)
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps(TRAIN.config(options)))
    again = TRAIN.settle(
        read_words(TRAIN, [f"--config={stored}", "--restorer=tiny", "--reward=frm"]), tmp_path / "else"
    )
    assert again == options.model_copy(update={"preset": str(stored)})
    assert load_refl_config(str(stored)).train.max_steps == 7
    faces = PRETRAIN.settle(read_words(PRETRAIN, ["--preset=tiny", "--faces", "a", "b"]), tmp_path)
    stored.write_text(json.dumps(PRETRAIN.config(faces)))
    again = PRETRAIN.settle(read_words(PRETRAIN, [f"--config={stored}", "--eta=0.5"]), tmp_path)
    assert (again.faces, again.out, again.model.eta) == (faces.faces, faces.out, 0.5)


def test_the_settings_of_a_training_are_those_of_its_preset() -> None:
    assert read_words(TRAIN, TUNE).config == load_refl_config("tiny-refl")
    changed = read_words(TRAIN, [*TUNE, "--max-steps=7", "--no-gradient-norms"]).config
    assert changed == load_refl_config("tiny-refl", {"train": {"max_steps": 7, "gradient_norms": False}})
    assert set(ReflConfig.model_fields) == {setting.table for setting in TRAIN.settings} - {"options"}


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (TRAIN, ["--preset=tiny-refl", "--restorer=feedforward:x", "--reward=frm"], "feedforward:x has no noise"),
        (TRAIN, ["--preset=tiny-refl", "--restorer=onnx:x", "--reward=frm"], "onnx:x has no noise"),
        (TRAIN, ["--preset=tiny-refl", "--restorer=pmrf", "--reward=frm"], "pmrf is restored by and not tuned"),
        (TRAIN, [*TUNE, "--max-steps=some"], "--max-steps: Give a whole number, got 'some'."),
        (TRAIN, [*TUNE, "--gradient-window", "2", "1"], "--gradient-window: The low end comes first, got 2 to 1."),
        (TRAIN, [*TUNE, "--steps=2"], "tiny-refl.toml: trajectory: gradient_window ends at 2"),
        (PRETRAIN, ["--preset=tiny"], "No faces are named. Give --faces DIR"),
        (EVALUATE, ["--method=tiny", "--degradation=mild"], "There is no preset 'mild'. Name one of dpo-24gb"),
        (EVALUATE, ["--method=tiny", "--reward=a=x", "--reward=a=y"], "Two reward models are called 'a'"),
        (RESTORE, ["--aligned"], "--aligned is about INPUT; the database's sources are aligned faces already."),
        (RESTORE, ["--split=test", "--source=a"], "Give --split or --source, not both."),
        (ABLATE, ["paper", "--restorer=tiny", "--reward=frm", "--out=o", "--only", "no nose"], "no variant 'no nose'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_run_begins(command, words, message) -> None:
    with pytest.raises(UserError, match=message):
        command.settle(read_words(command, words), Path("data"))


def test_a_folder_may_be_called_as_a_kind_of_restorer_is() -> None:
    settled = TRAIN.settle(
        read_words(TRAIN, ["--preset=tiny-refl", "--restorer=onnx-mine", "--reward=frm"]), Path("data")
    )
    assert Path(settled.restorer).name == "onnx-mine"


def test_restoring_takes_the_shipped_restorer_and_each_once() -> None:
    for words, methods in (([], ["tiny"]), (["--method=a=x", "--method=tiny", "--method=a=x"], ["a=x", "tiny"])):
        assert RESTORE.settle(read_words(RESTORE, words), Path("data")).methods == methods


def test_all_words_behind_with_go_to_the_trainings() -> None:
    words = ["paper", "--restorer=tiny", "--reward=frm", "--out=/o", "--with", "--max-steps", "200", "--data=x"]
    options = read_words(ABLATE, words)
    assert options.flags == ["--max-steps", "200", "--data=x"]
    assert read_words(ABLATE, ABLATE.words(options)) == options
    assert ABLATE.settle(options, Path("data")).flags == ["--max-steps", "200"]


def test_commands_are_read_and_settled_without_torch() -> None:
    program = f"""
import sys
from pathlib import Path
from refl.commands import COMMANDS
from runs.options import read_words
for command, words in {[(command.name, words) for command, words, _ in FOLDERS]!r}:
    (found,) = [one for one in COMMANDS if one.name == command]
    found.settle(read_words(found, words), Path("data"))
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_option_is_described() -> None:
    for command in COMMANDS:
        assert [setting.key for setting in command.settings if not setting.description] == []


def test_reward_models_without_a_name_are_called_after_their_folders() -> None:
    assert name_rewards(["frm", "a=x", "runs/frm"]) == {"frm": "frm", "a": "x", "frm-2": "runs/frm"}
