"""ReFL with rewards that see what was restored, and with reward sets: what they get, what they pull, what is told."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from db.errors import UserError
from refl.restorers.diffusion import DiffusionRestorer
from refl.tune import train as tuning
from refl.tune.data import Face
from refl.tune.losses import compute_pull
from refl.tune.memory import count_training
from refl.tune.setup import check_reward_input
from refl.tune.training import Material
from reward.model.checkpoint import compute_version
from reward.model.model import RewardModel
from reward.model.reward_set import RewardSet
from reward.model.set_config import Member, SetConfig
from tests.unit.refl.conftest import CLIP, make_micro_reward
from tests.unit.refl.tune.test_refl_train import make_config
from tests.unit.reward.model.test_input import shake_heads


class Killed(Exception):
    """Stands for SIGKILL: nothing is written any more."""


LIVE = {"reward_every_steps": 1, "reward_learning_rate": 1e-2}


def make_set(model: RewardModel, **changes: Any) -> RewardSet:
    """The model's two heads and GMSD to the ground truth or input."""
    heads = [Member(name=f"head{at}", model="it", head=at, center=0.1, scale=0.2) for at in range(2)]
    values = {
        "members": (*heads, Member(name="gmsd", metric="gmsd", center=-0.1, scale=0.05)),
        "spread_weight": 0.5,
        "unit": 0.2,
        "logit_scale": 10.0,
        "held_out_spread": 0.1,
        "images": 2,
        "dataset": "",
        "needs_input": True,
        "input_photo": "lq",
    }
    return RewardSet(SetConfig(**{**values, **changes}), {"it": model})


def run(
    restorer: DiffusionRestorer, reward: RewardModel | RewardSet, faces: list[Face], out: Path, **tables: dict[str, Any]
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """(the ControlNet's weights afterwards, the progress values of each step)."""
    lines: list[dict[str, float]] = []
    version = compute_version(reward) if isinstance(reward, RewardModel) else ""
    material = Material(deepcopy(restorer), deepcopy(reward), faces[:6], faces[6:], reward_version=version)
    tuning.train(material, make_config(**tables), out, lambda _done, _total, values: lines.append(values))
    assert material.restorer.control is not None
    return {name: value.clone() for name, value in material.restorer.control.state_dict().items()}, lines


@pytest.fixture
def seeing(tmp_path: Path) -> RewardModel:
    return shake_heads(make_micro_reward(tmp_path, text_mode="input", members=2))


def test_what_was_restored_is_what_the_reward_sees(
    micro_restorer: DiffusionRestorer, faces: list[Face], seeing: RewardModel, tmp_path: Path, monkeypatch: Any
) -> None:
    given: list[tuple[Tensor, Tensor | None]] = []
    original = RewardModel.compute_members

    def spy(self: RewardModel, images: Tensor, captions: Any, inputs: Tensor | None = None) -> Tensor:
        given.append((images, inputs))
        return original(self, images, captions, inputs)

    monkeypatch.setattr(RewardModel, "compute_members", spy)
    _, lines = run(micro_restorer, seeing, faces, tmp_path / "out")
    assert len(given) == 2
    for images, inputs in given:
        assert inputs is not None
        assert inputs.shape == images.shape
        assert not inputs.requires_grad
    assert {"reward/1", "reward/2", "reward_spread"} <= set(lines[0])
    assert lines[0]["reward"] == pytest.approx((lines[0]["reward/1"] + lines[0]["reward/2"]) / 2, abs=1e-5)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_seeing_reward_learns_alive_and_adds_up(
    micro_restorer: DiffusionRestorer, faces: list[Face], seeing: RewardModel, tmp_path: Path, micro_batch_size: int
) -> None:
    _, whole = run(micro_restorer, seeing, faces, tmp_path / "whole", live_reward=LIVE)
    _, parts = run(
        micro_restorer,
        seeing,
        faces,
        tmp_path / "parts",
        live_reward=LIVE,
        train={"micro_batch_size": micro_batch_size},
    )
    assert whole[0]["live_reward/kept"] == 1
    for name in ("loss", "gradient_norm", "live_reward/loss", "reward_spread"):
        assert parts[0][name] == pytest.approx(whole[0][name], rel=1e-3, abs=1e-6)
    assert (tmp_path / "whole" / "last" / "reward" / "changes.safetensors").is_file()


def test_set_tells_of_each_member_and_pulls_where_they_disagree(
    micro_restorer: DiffusionRestorer, faces: list[Face], seeing: RewardModel, tmp_path: Path
) -> None:
    loss = {"regularizer_weight": 0.1}
    changed: dict[float, dict[str, Tensor]] = {}
    for strength in (0.0, 50.0):
        changed[strength], lines = run(
            micro_restorer,
            make_set(seeing),
            faces,
            tmp_path / f"{strength}",
            loss={**loss, "disagreement_pull": strength},
        )
        told = {
            "reward/head0",
            "reward/head1",
            "reward/gmsd",
            "reward_spread",
            "pull",
            "loss/reward",
            "loss/regularizer",
        }
        assert told <= set(lines[1])
        assert lines[1]["loss"] == pytest.approx(lines[1]["loss/reward"] + lines[1]["loss/regularizer"], abs=1e-6)
        members = [lines[1][f"reward/{name}"] for name in ("head0", "head1", "gmsd")]
        expected = 0.2 * (sum(members) / 3 - 0.5 * lines[1]["reward_spread"])
        assert lines[1]["reward"] == pytest.approx(expected, abs=1e-4)
        assert (lines[1]["pull"] > 1) == (strength > 0)
    assert any(not torch.equal(changed[0.0][name], changed[50.0][name]) for name in changed[0.0])


def test_pull_is_one_up_to_the_held_out_spread() -> None:
    spread = torch.tensor([0.0, 0.1, 0.2, 0.4])
    assert torch.allclose(compute_pull(spread, 0.2, 2.0), torch.tensor([1.0, 1.0, 1.0, 3.0]))


def test_killed_training_with_a_set_continues_as_if_never_stopped(
    micro_restorer: DiffusionRestorer, faces: list[Face], seeing: RewardModel, tmp_path: Path, monkeypatch: Any
) -> None:
    settings = {"checkpoint_every_steps": 1, "log_every_steps": 3, "max_steps": 3}
    whole, lines = run(micro_restorer, make_set(seeing), faces, tmp_path / "whole", train=settings)
    original = tuning.train_step

    def die(training: Any, step: int, inputs: Any) -> dict[str, float]:
        if step == 2:
            raise Killed
        return original(training, step, inputs)

    monkeypatch.setattr(tuning, "train_step", die)
    with pytest.raises(Killed):
        run(micro_restorer, make_set(seeing), faces, tmp_path / "killed", train=settings)
    monkeypatch.setattr(tuning, "train_step", original)
    continued, after = run(micro_restorer, make_set(seeing), faces, tmp_path / "killed", train=settings)
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    assert after[-1]["reward/gmsd"] == pytest.approx(lines[-1]["reward/gmsd"], abs=1e-6)


def test_sets_and_models_of_the_ground_truth_do_not_learn_alive(seeing: RewardModel, tmp_path: Path) -> None:
    learning = make_config(live_reward=LIVE)
    with pytest.raises(UserError, match=r"A reward set does not go on learning.* Set reward_every_steps to 0"):
        check_reward_input(make_set(seeing).config, learning)
    other = make_micro_reward(tmp_path, text_mode="input", input_photo="hq").config
    with pytest.raises(UserError, match="ground truth win against itself"):
        check_reward_input(other, learning)
    check_reward_input(other, make_config())
    check_reward_input(seeing.config, learning)


@pytest.mark.parametrize("combined", [False, True])
def test_memory_of_seeing_rewards_and_sets_is_counted(seeing: RewardModel, combined: bool) -> None:
    config = make_config(train={"monitor_every_steps": 1}, trajectory={"gradient_window": (0, 0)})
    shape = (make_set(seeing).config, {"it": (seeing.config, CLIP)}) if combined else None
    count = count_training(config, "tiny", seeing.config, CLIP, combined=shape)
    assert {"step", "check"} <= set(count.phases)
