"""The reward model that goes on learning: the published step by hand, replayed pairs, and updates taken back."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image as PilImage
from torch import Tensor

from dataset.labelled import LabelledPair
from refl.tune.config import LiveRewardConfig
from refl.tune.live_reward import LiveReward
from reward.data import Pairs
from reward.model.model import RewardModel
from tests.gradients import difference, record_gradients
from tests.unit.refl.conftest import make_micro_reward


@pytest.fixture
def model(tmp_path: Path) -> RewardModel:
    return make_micro_reward(tmp_path)


@pytest.fixture
def make_pair(tmp_path: Path) -> Callable[..., LabelledPair]:
    def make(name: str, a: int, b: int, p_a: float) -> LabelledPair:
        files = []
        for side, level in (("a", a), ("b", b)):
            files.append(tmp_path / f"{name}{side}.png")
            PilImage.new("RGB", (16, 16), (level, level, level)).save(files[-1])
        fields: dict[str, Any] = dict.fromkeys(LabelledPair.__dataclass_fields__)
        fields |= {"pair": name, "image_a": files[0], "image_b": files[1], "p_a": p_a, "weight": 1.0}
        fields |= {"origin": "human", "made_by": "people", "source": name, "group": name, "split": "val"}
        return LabelledPair(**fields)

    return make


def make_live(model: RewardModel, **fields: Any) -> LiveReward:
    pairs = {name: fields.pop(name, None) for name in ("replay", "held_out")}
    return LiveReward(model, LiveRewardConfig(**fields), Accelerator(cpu=True), **pairs)


def images(*levels: float) -> Tensor:
    return torch.stack([torch.full((3, 16, 16), level) for level in levels])


def test_an_update_is_the_published_step(model: RewardModel) -> None:
    hq, restored = torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        margins = (model(hq, [None] * 3) - model(restored, [None] * 3)) * model.logit_scale
    values = make_live(model, reward_learning_rate=1e-3).update(0, restored, hq, [None] * 3)
    # two-way cross-entropy with the ground truth as the winner: log(1 + exp(-margin))
    assert values["loss"] == pytest.approx(float(torch.log1p(torch.exp(-margins)).mean()), rel=1e-5)
    assert values["accuracy"] == pytest.approx(float((margins > 0).float().mean()))
    with torch.no_grad():
        after = (model(hq, [None] * 3) - model(restored, [None] * 3)) * model.logit_scale
    assert after.mean() > margins.mean()
    assert all(not parameter.requires_grad for parameter in model.parameters())


def test_rewards_have_a_gradient_to_the_pixels_and_none_to_the_model(model: RewardModel) -> None:
    live = make_live(model)
    pixels = images(0.3, 0.6).requires_grad_()
    live.compute(pixels, [None, None]).sum().backward()
    assert pixels.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_updates_are_due_every_so_many_steps_from_the_first_on(model: RewardModel) -> None:
    live = make_live(model, reward_every_steps=10, reward_first_step=20)
    assert [step for step in range(45) if live.is_due(step)] == [20, 30, 40]
    assert not any(make_live(model, reward_every_steps=0).is_due(step) for step in range(20))


def test_replayed_pairs_teach_what_people_said(model: RewardModel, make_pair: Callable[..., LabelledPair]) -> None:
    pairs = Pairs(Path(), tuple(make_pair(f"p{place}", 60, 200, 1.0) for place in range(4)))
    dark, bright = images(60 / 255), images(200 / 255)
    live = make_live(model, replay=pairs, replay_pairs=4, reward_learning_rate=3e-3, reward_loss_scale=1.0)
    before = float((model(dark, [None]) - model(bright, [None])).detach())
    for step in range(10):
        live.update(step, images(0.5), images(0.5), [None])  # restored and ground truth alike: they teach nothing
    assert float((model(dark, [None]) - model(bright, [None])).detach()) > before


def test_an_update_that_costs_accuracy_on_people_is_taken_back(
    model: RewardModel, make_pair: Callable[..., LabelledPair]
) -> None:
    dark_wins = bool((model(images(0.2), [None]) > model(images(0.8), [None])).all())
    held_out = Pairs(Path(), tuple(make_pair(f"h{n}", 51, 204, float(dark_wins)) for n in range(3)))
    live = make_live(model, held_out=held_out, max_accuracy_loss=0.1, reward_learning_rate=0.05, reward_loss_scale=10.0)
    live.first_margins = live.measure_margins()
    assert live.measure_accuracy() == 1.0

    worse, better = (images(0.2), images(0.8)) if dark_wins else (images(0.8), images(0.2))
    taken_back = []
    for step in range(30):  # the ground truth is what people like less
        assert live.weights is not None
        before = [master.detach().clone() for master in live.weights.masters]
        moments = deepcopy(live.weights.optimizer.state_dict()["state"])
        values = live.update(step, worse, better, [None])
        if not values["kept"]:
            taken_back.append(step)
            assert values["held_out_accuracy"] < 0.9
            assert all(torch.equal(a, b) for a, b in zip(live.weights.masters, before, strict=True))
            after = live.weights.optimizer.state_dict()["state"]  # else the moments would go on pushing
            assert all(torch.equal(after[at]["exp_avg"], moments[at]["exp_avg"]) for at in moments)
    assert taken_back
    assert live.measure_accuracy() == 1.0


def test_a_fall_within_its_noise_is_kept(model: RewardModel, make_pair: Callable[..., LabelledPair]) -> None:
    held_out = Pairs(Path(), tuple(make_pair(f"h{n}", 51 + n, 204, 1.0) for n in range(20)))
    live = make_live(model, held_out=held_out, max_accuracy_loss=0.01)
    live.first_margins = np.ones(20)
    for wrong, kept in ((1, 1.0), (8, 0.0)):  # of 20 labels: 1 is no more than chance, 8 are
        live.measure_margins = lambda wrong=wrong: np.where(np.arange(20) < wrong, -1.0, 1.0)  # type: ignore[method-assign]
        assert live._take_back_if_worse(live._remember())["kept"] == kept


def test_micro_batches_of_an_update_add_up(model: RewardModel, make_pair: Callable[..., LabelledPair]) -> None:
    pairs = Pairs(Path(), tuple(make_pair(f"p{place}", 60 + place, 200, 1.0) for place in range(4)))
    hq, restored = torch.rand(5, 3, 16, 16), torch.rand(5, 3, 16, 16)
    found: dict[int, list[Tensor]] = {}
    for size in (0, 2):
        live = make_live(deepcopy(model), replay=pairs, replay_pairs=3)
        live.micro_batch_size = size
        with record_gradients(partial(found.__setitem__, size)):
            live.update(0, restored, hq, [None] * 5)
    assert difference(found[0], found[2]) < 1e-5
