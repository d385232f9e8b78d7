"""A ReFL training can be continued any number of times, by whatever it was ended, also where an older version began."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from db.errors import UserError
from refl.tune.train import train
from reward.model.checkpoint import load_model, save_model
from runs.store import RunStopped
from tests.making import mount_disk, read_files
from tests.unit.refl.conftest import make_micro_restorer, write_faces
from tests.unit.refl.tune.test_refl_train import clip, make_config, make_material  # noqa: F401

STEPS = 8
TABLES: dict[str, dict[str, Any]] = {
    "live_reward": {"reward_every_steps": 2, "reward_learning_rate": 1e-3},
    "loss": {"regularizer_weight": 0.1},
}
TRAIN = {"max_steps": STEPS, "ema_decay": 0.5, "monitor_every_steps": 3, "monitor_faces": 2}
TRAINED = ("last/trained.safetensors", "last/reward/changes.safetensors", "tuned/trained.safetensors")

Act = Callable[[int, int, dict[str, float]], None]


class Killed(Exception):
    """Stands for SIGKILL: nothing is written any more."""


def die(done: int, _total: int, _values: dict[str, float]) -> None:
    if done % 2 == 0 and done < STEPS:
        raise Killed


def send(number: int) -> Act:
    def act(done: int, _total: int, _values: dict[str, float]) -> None:
        if done % 2 == 1 and done < STEPS - 2:
            os.kill(os.getpid(), number)

    return act


def do_nothing(_done: int, _total: int, _values: dict[str, float]) -> None:
    """What an uninterrupted training is told its progress by."""


@pytest.fixture(scope="module")
def begin(clip: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:  # noqa: F811
    """`begin(out, act, trainable="lora")`: the training from the start, or on from where it was ended."""
    faces = write_faces(tmp_path_factory.mktemp("photos") / "faces")

    def make(out: Path, act: Act = do_nothing, **fields: Any) -> None:
        config = make_config(**TABLES, train={**TRAIN, "checkpoint_every_steps": 1, **fields})
        train(make_material(make_micro_restorer(), clip, faces), config, out, act)

    return make


@pytest.fixture(scope="module")
def whole(begin: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`whole("lora")`: the folder of a training that was never ended; each is trained once."""

    @cache
    def train_whole(trainable: str = "control") -> Path:
        out = tmp_path_factory.mktemp("whole") / "out"
        begin(out, trainable=trainable)
        return out

    return train_whole


@pytest.fixture(scope="module")
def stopped_twice(begin: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that SIGTERM ended twice, after three steps in all; for tests to copy."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    for _ in range(2):
        with pytest.raises(RunStopped):
            begin(out, send(signal.SIGTERM))
    return out


@pytest.fixture
def parts(stopped_twice: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(stopped_twice, tmp_path / "parts")


def check_same_weights(one: Path, other: Path) -> None:
    for file in TRAINED:
        a, b = load_file(one / file), load_file(other / file)
        assert set(a) == set(b)
        assert all(torch.equal(value, b[name]) for name, value in a.items()), file


@pytest.mark.parametrize(
    ("how", "trainable"),
    [
        *(("killed", "control"), ("killed", "lora"), (signal.SIGTERM, "lora")),
        *(
            pytest.param(number, "control", marks=pytest.mark.slow)
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
        ),
    ],
)
def test_three_times_continued_it_has_the_weights_of_never_having_stopped(
    begin: Callable[..., None], whole: Callable[..., Path], tmp_path: Path, how: str | int, trainable: str
) -> None:
    parts = tmp_path / "parts"
    for _ in range(3):
        with pytest.raises(Killed if how == "killed" else RunStopped):
            begin(parts, die if isinstance(how, str) else send(how), trainable=trainable)
    begin(parts, trainable=trainable)
    check_same_weights(whole(trainable), parts)
    record = json.loads((parts / "last" / "training.json").read_text())
    assert record["restorer"] == json.loads((whole(trainable) / "last" / "training.json").read_text())["restorer"]


def change_record(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "last" / "training.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


@pytest.mark.parametrize("is_older", [True, False])
def test_a_folder_whose_record_names_the_checkpoint_that_was_loaded_goes_on(
    begin: Callable[..., None], whole: Callable[..., Path], parts: Path, is_older: bool
) -> None:
    def spoil(record: dict[str, Any]) -> None:
        record["restorer"]["weights"]["trained.safetensors"] = "0" * 64
        if is_older:
            del record["dataset_sha256"], record["reward_base"]

    change_record(parts, spoil)
    begin(parts)
    check_same_weights(whole(), parts)


def test_a_state_as_earlier_versions_wrote_it_is_read(
    begin: Callable[..., None], whole: Callable[..., Path], parts: Path
) -> None:
    state = torch.load(parts / "last" / "state.pt", weights_only=True)
    for part in (state, state["live"]):
        part |= part.pop("weights")
    del state["live"]["first_margins"], state["live"]["averages"], state["live"]["scaler"]
    state["sums"] = {"reward": 1.0, "images": 4.0}
    state["monitor"]["first_restored"] = state["monitor"]["first_restored"].float() / 255
    for row in state["monitor"]["history"]:
        (row["verdict"] or {}).pop("suspicious", None)
    torch.save(state, parts / "last" / "state.pt")
    reward = parts / "last" / "reward"
    loaded = load_model(reward)
    shutil.rmtree(reward)
    save_model(loaded, reward)
    begin(parts)
    check_same_weights(whole(), parts)


def test_a_setting_that_was_not_known_then_is_as_by_default(
    begin: Callable[..., None], whole: Callable[..., Path], parts: Path
) -> None:
    def forget(record: dict[str, Any]) -> None:
        del record["config"]["train"]["weight_decay"], record["config"]["loss"]["use_prompt"]
        del record["config"]["loss"]["identity_weight"], record["config"]["loss"]["identity_to"]
        del record["config"]["trajectory"]["start_fraction"], record["restorer"]["eta"]
        record["config"]["train"]["of_long_ago"] = 3
        record["restorer"]["also_of_long_ago"] = True

    change_record(parts, forget)
    with pytest.raises(UserError, match=r"was trained with weight_decay 0\.01, not 0\.5\. Give the same settings"):
        begin(parts, weight_decay=0.5)
    begin(parts)
    check_same_weights(whole(), parts)
    change_record(parts, lambda record: record["config"].pop("degradation"))
    with pytest.raises(UserError, match="was trained with blur_kernel_px"):  # not its default here
        begin(parts)


def test_another_restorer_is_still_refused(begin: Callable[..., None], parts: Path) -> None:
    change_record(parts, lambda record: record["restorer"].update(weights={"model.safetensors": "1" * 64}))
    with pytest.raises(UserError, match="was trained with another restorer"):
        begin(parts)
    change_record(parts, lambda record: record["restorer"].update(weights={}))
    change_record(parts, lambda record: record["reward_base"].update(version="reward 0123456789abcdef"))
    with pytest.raises(UserError, match="was trained with another reward"):
        begin(parts)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    with mount_disk(tmp_path / "disk", "8m") as disk:
        yield disk


@pytest.mark.parametrize(
    "free_bytes",
    [0, pytest.param(40_000, marks=pytest.mark.slow), 130_000, pytest.param(400_000, marks=pytest.mark.slow)],
)
def test_a_full_disk_leaves_the_last_good_checkpoint(
    begin: Callable[..., None], whole: Callable[..., Path], stopped_twice: Path, small_disk: Path, free_bytes: int
) -> None:
    """The disk ends at another place of what is written: the grid, the weights, the reward model, the optimizer."""
    out = shutil.copytree(stopped_twice, small_disk / "out")
    before = read_files(out / "last")
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(bytes(max(0, free - free_bytes)))
    with pytest.raises(UserError) as full:
        begin(out)
    said = str(full.value)
    assert said.startswith(str(out))
    assert "the disk is full: " in said
    assert "are needed. Free some disk space; then run the same command again" in said
    assert "\n" not in said
    assert not list(out.rglob("*.part"))
    after = read_files(out / "last")
    assert json.loads(after["training.json"])["step"] >= json.loads(before["training.json"])["step"]
    filler.unlink()
    begin(out)
    check_same_weights(whole(), out)


@pytest.mark.parametrize("place", ["torch.save", "safetensors", "fsync", "rename"])
def test_a_write_that_fails_anywhere_in_a_checkpoint_leaves_the_one_before(
    begin: Callable[..., None], parts: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_files(parts / "last")

    def fail(*_: Any, **__: Any) -> None:
        if place == "safetensors":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        if place == "torch.save":
            raise RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where = {
        "torch.save": "training.state.torch.save",
        "safetensors": "training.weights.save_file",
        "fsync": "training.state.os.fsync",
        "rename": "training.state._take_place",
    }[place]
    monkeypatch.setattr(where, fail)
    with pytest.raises(UserError, match=r"last: the disk is full: .*B are needed"):
        begin(parts)
    assert read_files(parts / "last") == before
    assert not list(parts.rglob("*.part"))
