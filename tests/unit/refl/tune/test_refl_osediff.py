"""ReFL of OSEDiff: its one step, adapters on denoiser and encoder alone, and what cannot be asked of it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from db.errors import UserError
from refl.restorers.osediff import OSEDiff
from refl.tune.data import Face
from refl.tune.train import train
from refl.tune.training import Material
from tests.unit.refl.conftest import make_micro_osediff
from tests.unit.refl.tune.test_refl_train import Brightness, make_config

TRAJECTORY = {"gradient_window": (0, 0)}
LORA = {"trainable": "lora", "lora_rank": 2, "image_size_px": 32}


@pytest.fixture
def osediff() -> OSEDiff:
    return make_micro_osediff()


def run(
    osediff: OSEDiff, faces: list[Face], out: Path, **tables: dict[str, Any]
) -> tuple[OSEDiff, list[dict[str, float]]]:
    lines: list[dict[str, float]] = []
    material = Material(deepcopy(osediff), Brightness(), faces[:6], faces[6:])
    config = make_config(**{"trajectory": TRAJECTORY, "train": LORA, **tables})
    train(material, config, out, lambda _done, _total, values: lines.append(values))
    assert isinstance(material.restorer, OSEDiff)
    return material.restorer, lines


@pytest.mark.slow
def test_adapters_of_denoiser_and_encoder_learn_and_nothing_else(
    osediff: OSEDiff, faces: list[Face], tmp_path: Path
) -> None:
    steps = {**LORA, "max_steps": 25, "learning_rate": 3e-3, "batch_size": 6}
    tuned, lines = run(osediff, faces, tmp_path / "out", train=steps)
    assert lines[-1]["reward"] > lines[0]["reward"]
    moved = {name for name, value in tuned.named_parameters() if ".lora_B." in name and bool(value.abs().max() > 0)}
    assert any(name.startswith("unet.") for name in moved)
    assert any(name.startswith("vae.encoder.") for name in moved)
    assert all(parameter.requires_grad == (".lora_" in name) for name, parameter in tuned.named_parameters())
    lq = torch.rand(1, 3, 32, 32)
    tuned.set_lora_strength(0)  # OSEDiff as it was
    assert torch.allclose(tuned.restore(lq, [0]), osediff.restore(lq, [0]), atol=1e-5)


def test_what_is_saved_restores_like_the_trained_one(osediff: OSEDiff, faces: list[Face], tmp_path: Path) -> None:
    tuned, _ = run(osediff, faces, tmp_path / "out")
    again = deepcopy(osediff)
    again.load_trained(tmp_path / "out" / "tuned")
    lq = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.restore(lq, [0, 0]), tuned.restore(lq, [0, 0]))


def test_the_regularizer_compares_with_adapters_off(osediff: OSEDiff, faces: list[Face], tmp_path: Path) -> None:
    _, lines = run(osediff, faces, tmp_path / "out", loss={"regularizer_weight": 1.0})
    assert lines[0]["loss/regularizer"] < 1e-12  # adapters begin with no effect
    assert lines[1]["loss/regularizer"] > 0


def test_what_osediff_has_not_is_refused(osediff: OSEDiff, faces: list[Face], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes one step: set gradient_window to 0 0"):
        run(osediff, faces, tmp_path / "b", trajectory={"gradient_window": (0, 1)})
    with pytest.raises(UserError, match="trained by LoRA; it has no control"):
        run(osediff, faces, tmp_path / "c", train={"trainable": "control", "image_size_px": 32})


def test_the_gradient_begins_at_the_encoder(osediff: OSEDiff) -> None:
    osediff.set_trainable("lora", 2)
    for name, parameter in osediff.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)
    image: Tensor = osediff(torch.rand(1, 3, 32, 32))
    torch.autograd.backward(image.mean())
    encoder = [
        p.grad for name, p in osediff.named_parameters() if name.startswith("vae.encoder.") and ".lora_A." in name
    ]
    assert encoder
    assert any(gradient is not None and bool(gradient.abs().max() > 0) for gradient in encoder)
