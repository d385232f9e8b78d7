"""ReFL of one-step restorers whose own adapters are trained, or whose latents are noised first."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from refl.tune.data import Face
from refl.tune.setup import Material
from refl.tune.train import train
from tests.unit.refl.conftest import make_micro_one_step
from tests.unit.refl.tune.test_refl_osediff import LORA, TRAJECTORY
from tests.unit.refl.tune.test_refl_train import Brightness, make_config


@pytest.mark.parametrize("kind", ["hypir", pytest.param("pisasr", marks=pytest.mark.slow), "gdpo"])
def test_it_is_tuned_from_what_was_published_and_comes_back(kind: str, faces: list[Face], tmp_path: Path) -> None:
    published = make_micro_one_step(kind)
    lines: list[dict[str, float]] = []
    material = Material(deepcopy(published), Brightness(), faces[:6], faces[6:])
    steps = {**LORA, "max_steps": 2, "learning_rate": 1e-2}
    config = make_config(trajectory=TRAJECTORY, train=steps, loss={"regularizer_weight": 1.0})
    train(material, config, tmp_path / "out", lambda _done, _total, values: lines.append(values))
    tuned = material.restorer
    assert lines[0]["loss/regularizer"] < 1e-10  # as it was published
    assert lines[1]["loss/regularizer"] > 0
    lq = torch.rand(1, 3, 32, 32)
    after = tuned.restore(lq, [4])
    assert (after - published.restore(lq, [4])).abs().max() > 1e-4
    with torch.no_grad(), tuned.without_adapters():
        assert torch.allclose(tuned.restore(lq, [4]), published.restore(lq, [4]), atol=1e-5)
    again = deepcopy(published)
    again.load_trained(tmp_path / "out" / "tuned")
    assert torch.equal(again.restore(lq, [4]), after)
