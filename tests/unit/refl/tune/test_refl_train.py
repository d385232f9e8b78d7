"""ReFL's training on a micro restorer: it optimises what it is given, accumulates exactly, and rests what is frozen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from db.errors import UserError
from refl.restorers.diffusion import DiffusionRestorer
from refl.tune.config import ReflConfig
from refl.tune.data import Face
from refl.tune.train import train
from refl.tune.training import Material
from reward.model.checkpoint import compute_version, save_model
from reward.model.model import RewardModel
from tests.gradients import difference, record_gradients
from tests.unit.refl.conftest import make_micro_reward

MAX_DIFFERENCE = 1.2e-4
"""Of one step's gradients, against their length, between a batch and its parts: ten times the most measured with
ATEN_CPU_CAPABILITY unset, avx2 and default."""


class Brightness(nn.Module):
    """A stand-in reward: the mean of all pixels."""

    def forward(self, images: Tensor, _captions: Sequence[str | None]) -> Tensor:
        return images.clamp(0, 1).mean(dim=(1, 2, 3))


def make_config(**changes: dict[str, Any]) -> ReflConfig:
    """Two steps with only the reward, no monitor, no live reward; `changes` are tables."""
    values: dict[str, dict[str, Any]] = {
        "trajectory": {"steps": 4, "gradient_window": (0, 1)},
        "loss": {"reward_weight": 1.0, "structure_weight": 0, "regularizer_weight": 0, "perceptual_weight": 0},
        "live_reward": {"reward_every_steps": 0},
        "train": {
            "max_steps": 2,
            "batch_size": 4,
            "micro_batch_size": 0,
            "learning_rate": 1e-3,
            "monitor_every_steps": 0,
            "workers": 0,
            "log_every_steps": 1,
        },
        "degradation": {"blur_kernel_px": 5, "blur_sigma_px": (0.5, 1.0), "downsample_factor": (1, 2)},
    }
    for table, fields in changes.items():
        values[table] = {**values.get(table, {}), **fields}
    return ReflConfig.model_validate(values)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    folder = tmp_path_factory.mktemp("clip")
    model = make_micro_reward(folder, unlocked_image_groups=2, unlocked_text_blocks=1, text_mode="caption")
    save_model(model, folder / "clip")
    model.where = str(folder / "clip")
    return model


def make_material(restorer: nn.Module, reward: nn.Module, faces: list[Face]) -> Material:
    """Six faces to train on, the others held out; where the reward model goes on learning, its folder is known."""
    if not isinstance(reward, RewardModel):
        return Material(restorer, reward, faces[:6], faces[6:])
    names = {"reward": reward.where}
    return Material(
        restorer, deepcopy(reward), faces[:6], faces[6:], names=names, reward_version=compute_version(reward)
    )


class Killed(Exception):
    """Stands for SIGKILL: nothing is written any more."""


def die(done: int, _total: int, _values: dict[str, float]) -> None:
    if done == 3:
        raise Killed


def run(
    restorer: DiffusionRestorer, reward: nn.Module, faces: list[Face], config: ReflConfig, out: Path
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """(the ControlNet's weights afterwards, the progress values of each step)."""
    lines: list[dict[str, float]] = []
    material = make_material(deepcopy(restorer), reward, faces)
    train(material, config, out, lambda _done, _total, values: lines.append(values))
    return {name: value.clone() for name, value in material.restorer.control.state_dict().items()}, lines


@pytest.mark.slow
def test_a_reward_for_brightness_brightens_and_one_for_darkness_darkens(
    micro_restorer: DiffusionRestorer, faces: list[Face], tmp_path: Path
) -> None:
    class Signed(Brightness):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, images: Tensor, captions: Sequence[str | None]) -> Tensor:
            return self.sign * super().forward(images, captions)

    config = make_config(
        trajectory={"start_fraction": 1.0, "gradient_window": (2, 2)},  # where the ControlNet can change most
        train={"max_steps": 40, "learning_rate": 1e-2, "batch_size": 6},
    )
    brightness: dict[float, float] = {}
    for sign in (1.0, -1.0):
        _, lines = run(micro_restorer, Signed(sign), faces, config, tmp_path / f"out{sign}")
        brightness[sign] = sign * sum(line["reward"] for line in lines[-5:]) / 5
        # nothing but the reward was asked for
        assert set(lines[0]) == {
            *("loss", "loss/reward", "reward", "gradient_norm", "gradient_norm/reward", "seconds_per_step")
        }
    # both restored the same batches from the same noise, so training alone tells them apart: by 0.013 to 0.016 over
    # ATEN_CPU_CAPABILITY unset, avx2 and default, for a random decoder is hardly moved
    assert brightness[1.0] > brightness[-1.0] + 0.005


@pytest.mark.parametrize("field", ["micro_batch_size", "rollout_batch_size"])
def test_micro_batches_add_up_to_the_batch(
    micro_restorer: DiffusionRestorer, faces: list[Face], tmp_path: Path, field: str
) -> None:
    losses = {"structure_weight": 0.1, "regularizer_weight": 0.1, "perceptual": "gmsd", "perceptual_weight": 0.1}
    found: dict[int, list[Tensor]] = {}
    for size in (4, 1, 3):
        config = make_config(loss=losses, train={field: size, "max_steps": 1})
        with record_gradients(partial(found.__setitem__, size)):
            run(micro_restorer, Brightness(), faces, config, tmp_path / f"out{size}")
    for size in (1, 3):
        assert difference(found[4], found[size]) < MAX_DIFFERENCE


def test_only_the_controlnet_changes(micro_restorer: DiffusionRestorer, faces: list[Face], tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in micro_restorer.state_dict().items()}
    reward = Brightness()
    material = Material(micro_restorer, reward, faces[:6], faces[6:])
    train(material, make_config(), tmp_path / "out")
    changed = {name for name, value in micro_restorer.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("control.") for name in changed)
    others = (p for name, p in micro_restorer.named_parameters() if not name.startswith("control."))
    assert all(parameter.grad is None for parameter in others)


def test_the_regularizer_is_zero_at_the_first_step_and_not_later(
    micro_restorer: DiffusionRestorer, faces: list[Face], tmp_path: Path
) -> None:
    config = make_config(loss={"regularizer_weight": 1.0})
    _, lines = run(micro_restorer, Brightness(), faces, config, tmp_path / "out")
    assert lines[0]["loss/regularizer"] < 1e-12  # attention with and without gradient rounds differently
    assert lines[1]["loss/regularizer"] > 0


@pytest.mark.parametrize(
    "trajectory",
    [
        {"unroll": True, "gradient_window": (1, 1)},
        {"renoise": 3, "gradient_window": (0, 0)},
        {"start_fraction": 1.0, "gradient_window": (2, 3)},
        {"eta": (0.0, 0.0)},
    ],
)
def test_every_kind_of_trajectory_brightens(
    micro_restorer: DiffusionRestorer, faces: list[Face], tmp_path: Path, trajectory: dict[str, Any]
) -> None:
    config = make_config(trajectory=trajectory, train={"max_steps": 25, "learning_rate": 3e-3})
    _, lines = run(micro_restorer, Brightness(), faces, config, tmp_path / "out")
    assert lines[-1]["reward"] > lines[0]["reward"]


def test_the_live_reward_changes_only_at_its_steps_and_is_saved(
    micro_restorer: DiffusionRestorer, faces: list[Face], tmp_path: Path, clip: nn.Module
) -> None:
    first = {name: value.clone() for name, value in clip.state_dict().items()}
    live = {"reward_every_steps": 2, "reward_first_step": 2, "reward_learning_rate": 1e-3}
    config = make_config(live_reward=live, train={"max_steps": 4})
    _, lines = run(micro_restorer, clip, faces, config, tmp_path / "out")
    updated = [place for place, line in enumerate(lines) if "live_reward/loss" in line]
    assert updated == [2]
    assert all(torch.equal(value, first[name]) for name, value in clip.state_dict().items())  # the first one rests
    from reward.model.checkpoint import load_model

    saved = load_model(tmp_path / "out" / "tuned" / "reward").state_dict()
    assert any(not torch.equal(saved[name], first[name]) for name in first)


def test_continuing_gives_the_weights_of_never_having_stopped(
    micro_restorer: DiffusionRestorer, faces: list[Face], tmp_path: Path, clip: nn.Module
) -> None:
    tables: dict[str, dict[str, Any]] = {
        "live_reward": {"reward_every_steps": 2, "reward_learning_rate": 1e-3},
        "loss": {"regularizer_weight": 0.1},
    }
    train_fields = {"max_steps": 5, "ema_decay": 0.5, "monitor_every_steps": 2, "monitor_faces": 2}
    whole, _ = run(micro_restorer, clip, faces, make_config(**tables, train=train_fields), tmp_path / "whole")

    config = make_config(**tables, train={**train_fields, "checkpoint_every_steps": 2})
    with pytest.raises(Killed):
        train(make_material(deepcopy(micro_restorer), clip, faces), config, tmp_path / "parts", die)
    continued, _ = run(micro_restorer, clip, faces, config, tmp_path / "parts")
    assert all(torch.equal(value, whole[name]) for name, value in continued.items())
    from safetensors.torch import load_file

    for file in ("tuned/trained.safetensors", "tuned/reward/changes.safetensors"):
        a, b = (load_file(tmp_path / run_ / file) for run_ in ("whole", "parts"))
        assert all(torch.equal(value, b[name]) for name, value in a.items()), file


def test_copies_stay_at_every_nth_step_and_change_nothing(
    micro_restorer: DiffusionRestorer, faces: list[Face], tmp_path: Path, clip: nn.Module
) -> None:
    live = {"reward_every_steps": 2, "reward_learning_rate": 1e-3}
    train_fields = {"max_steps": 5, "ema_decay": 0.5}
    plain, _ = run(micro_restorer, clip, faces, make_config(live_reward=live, train=train_fields), tmp_path / "plain")

    out = tmp_path / "kept"
    config = make_config(live_reward=live, train={**train_fields, "checkpoint_every_steps": 2, "keep_every_steps": 1})
    with pytest.raises(Killed):
        train(make_material(deepcopy(micro_restorer), clip, faces), config, out, die)
    assert sorted(folder.name for folder in (out / "steps").iterdir()) == ["000001", "000002", "000003"]
    other = make_config(live_reward=live, train={**train_fields, "keep_every_steps": 1, "keep_steps_max": 2})
    kept, _ = run(micro_restorer, clip, faces, other, out)
    assert all(torch.equal(value, plain[name]) for name, value in kept.items())
    assert sorted(folder.name for folder in (out / "steps").iterdir()) == ["000004", "000005"]
    from safetensors.torch import load_file

    for file in ("trained.safetensors", "reward/changes.safetensors"):  # what is used: the average
        a, b = (load_file(out / folder / file) for folder in ("tuned", "steps/000005"))
        assert all(torch.equal(value, b[name]) for name, value in a.items()), file


def test_errors_name_what_is_wrong(
    micro_restorer: DiffusionRestorer, faces: list[Face], tmp_path: Path, clip: nn.Module
) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor, _captions: Sequence[str | None]) -> Tensor:
            return images.mean(dim=(1, 2, 3)) * float("nan")

    with pytest.raises(UserError, match=r"The reward term of step 1 is not finite, with \d\.png"):
        run(micro_restorer, Broken(), faces, make_config(), tmp_path / "nan")
    assert not (tmp_path / "nan" / "last").exists()
    with pytest.raises(UserError, match="no face to train on"):
        train(Material(micro_restorer, Brightness(), [], []), make_config(), tmp_path / "none")
    with pytest.raises(UserError, match=r"All faces \(1\) are held out for the monitor, none is left to train on"):
        train(Material(micro_restorer, Brightness(), [], faces[:1]), make_config(), tmp_path / "none")
    config = make_config(train={"monitor_every_steps": 1})
    with pytest.raises(UserError, match="two held-out faces"):
        train(Material(micro_restorer, Brightness(), faces, faces[:1]), config, tmp_path / "few")
    with pytest.raises(UserError, match="gradient_window ends at 3, but of 4 steps only 2"):
        run(micro_restorer, Brightness(), faces, make_config(trajectory={"gradient_window": (3, 3)}), tmp_path / "w")
    run(micro_restorer, Brightness(), faces, make_config(), tmp_path / "same")
    with pytest.raises(UserError, match=r"trained with learning_rate 0\.001, not 0\.1"):
        run(micro_restorer, Brightness(), faces, make_config(train={"learning_rate": 0.1}), tmp_path / "same")
    without = [replace(face, caption=None) for face in faces]
    with pytest.raises(UserError, match=r"None of the 6 faces has a caption, .*Put NAME\.txt"):
        run(micro_restorer, clip, without, make_config(), tmp_path / "captions")
    faces[0].path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.png: not a PNG"):
        run(micro_restorer, Brightness(), faces, make_config(), tmp_path / "broken")


def test_out_of_memory_says_which_setting_to_change_and_keeps_the_checkpoint(
    micro_restorer: DiffusionRestorer, faces: list[Face], tmp_path: Path
) -> None:
    class Hungry(Brightness):
        calls = 0

        def forward(self, images: Tensor, captions: Sequence[str | None]) -> Tensor:
            Hungry.calls += 1
            if Hungry.calls == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images, captions)

    config = make_config(train={"checkpoint_every_steps": 1})
    with pytest.raises(UserError, match=r"^Out of memory. Set micro_batch_size to 1 .*gradient_checkpointing to true"):
        run(micro_restorer, Hungry(), faces, config, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "last" / "training.json").read_text())["step"] == 1
