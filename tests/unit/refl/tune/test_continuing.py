"""A ReFL training can be continued any number of times, by whatever it was ended, also where an older version began."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from db.errors import UserError
from refl.restorers.diffusion import DiffusionRestorer
from refl.tune.data import Face
from refl.tune.train import train
from reward.model.checkpoint import load_model, save_model
from runs.store import RunStopped
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


@pytest.fixture
def begin(micro_restorer: DiffusionRestorer, clip: nn.Module, faces: list[Face]) -> Callable[..., None]:  # noqa: F811
    """`begin(out, act, trainable="lora")`: the training from the start, or on from where it was ended."""

    def make(out: Path, act: Act = do_nothing, **fields: Any) -> None:
        config = make_config(**TABLES, train={**TRAIN, "checkpoint_every_steps": 1, **fields})
        train(make_material(deepcopy(micro_restorer), clip, faces), config, out, act)

    return make


def check_same_weights(one: Path, other: Path) -> None:
    for file in TRAINED:
        a, b = load_file(one / file), load_file(other / file)
        assert set(a) == set(b)
        assert all(torch.equal(value, b[name]) for name, value in a.items()), file


@pytest.mark.parametrize(
    ("how", "trainable"),
    [
        *(("killed", "control"), ("killed", "lora"), (signal.SIGTERM, "lora")),
        *((signal.SIGUSR1, "control"), (signal.SIGUSR2, "control"), (signal.SIGHUP, "control")),
    ],
)
def test_three_times_continued_it_has_the_weights_of_never_having_stopped(
    begin: Callable[..., None], tmp_path: Path, how: str | int, trainable: str
) -> None:
    begin(tmp_path / "whole", trainable=trainable)
    parts = tmp_path / "parts"
    for _ in range(3):
        with pytest.raises(Killed if how == "killed" else RunStopped):
            begin(parts, die if isinstance(how, str) else send(how), trainable=trainable)
    begin(parts, trainable=trainable)
    check_same_weights(tmp_path / "whole", parts)
    record = json.loads((parts / "last" / "training.json").read_text())
    assert record["restorer"] == json.loads((tmp_path / "whole/last/training.json").read_text())["restorer"]


def change_record(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "last" / "training.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def stop_after_three(begin: Callable[..., None], out: Path) -> None:
    for _ in range(2):
        with pytest.raises(RunStopped):
            begin(out, send(signal.SIGTERM))


@pytest.mark.parametrize("is_older", [True, False])
def test_a_folder_whose_record_names_the_checkpoint_that_was_loaded_goes_on(
    begin: Callable[..., None], tmp_path: Path, is_older: bool
) -> None:
    begin(tmp_path / "whole")
    parts = tmp_path / "parts"
    stop_after_three(begin, parts)

    def spoil(record: dict[str, Any]) -> None:
        record["restorer"]["weights"]["trained.safetensors"] = "0" * 64
        if is_older:
            del record["dataset_sha256"], record["reward_base"]

    change_record(parts, spoil)
    begin(parts)
    check_same_weights(tmp_path / "whole", parts)


def test_a_state_as_earlier_versions_wrote_it_is_read(begin: Callable[..., None], tmp_path: Path) -> None:
    begin(tmp_path / "whole")
    parts = tmp_path / "parts"
    stop_after_three(begin, parts)
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
    whole = load_model(reward)
    shutil.rmtree(reward)
    save_model(whole, reward)
    begin(parts)
    check_same_weights(tmp_path / "whole", parts)


def test_a_setting_that_was_not_known_then_is_as_by_default(begin: Callable[..., None], tmp_path: Path) -> None:
    begin(tmp_path / "whole")
    parts = tmp_path / "parts"
    stop_after_three(begin, parts)

    def forget(record: dict[str, Any]) -> None:
        del record["config"]["train"]["weight_decay"], record["config"]["loss"]["use_prompt"]
        del record["config"]["trajectory"]["start_fraction"], record["restorer"]["eta"]
        record["config"]["train"]["of_long_ago"] = 3
        record["restorer"]["also_of_long_ago"] = True

    change_record(parts, forget)
    with pytest.raises(UserError, match=r"was trained with weight_decay 0\.01, not 0\.5\. Give the same settings"):
        begin(parts, weight_decay=0.5)
    begin(parts)
    check_same_weights(tmp_path / "whole", parts)
    change_record(parts, lambda record: record["config"].pop("degradation"))
    with pytest.raises(UserError, match="was trained with blur_kernel_px"):  # not its default here
        begin(parts)


def test_another_restorer_is_still_refused(begin: Callable[..., None], tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    stop_after_three(begin, parts)
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
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)  # tensors may be mapped to its files


def list_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("free_bytes", [0, 40_000, 130_000, 400_000])
def test_a_full_disk_leaves_the_last_good_checkpoint(
    begin: Callable[..., None], small_disk: Path, tmp_path: Path, free_bytes: int
) -> None:
    """The disk ends at another place of what is written: the grid, the weights, the reward model, the optimizer."""
    out = small_disk / "out"
    stop_after_three(begin, out)
    before = list_files(out / "last")
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
    after = list_files(out / "last")
    assert json.loads(after["training.json"])["step"] >= json.loads(before["training.json"])["step"]
    filler.unlink()
    begin(out)
    begin(tmp_path / "whole")
    check_same_weights(tmp_path / "whole", out)


@pytest.mark.parametrize("place", ["torch.save", "safetensors", "fsync", "rename"])
def test_a_write_that_fails_anywhere_in_a_checkpoint_leaves_the_one_before(
    begin: Callable[..., None], tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stop_after_three(begin, out)
    before = list_files(out / "last")

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
        begin(out)
    assert list_files(out / "last") == before
    assert not list(out.rglob("*.part"))
