"""In every precision every trained tensor has a gradient and moves; terms are as exact in bfloat16 as in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import refl.tune.setup
import training.processes
from refl.tune.data import Face
from refl.tune.losses import compute_reward_loss, compute_structure_loss
from refl.tune.perceptual import load_perceptual
from refl.tune.train import train
from reward.model.checkpoint import build_model, load_model
from reward.model.config import ModelConfig, load_model_config
from reward.model.model import RewardModel
from tests.unit.refl.conftest import make_micro_osediff, make_micro_restorer
from tests.unit.refl.tune.test_refl_train import clip, make_config, make_material  # noqa: F401
from training.precision import TrainedWeights, place

KINDS = {
    "control": (make_micro_restorer, {}, {}),
    "lora": (make_micro_restorer, {}, {"trainable": "lora", "lora_rank": 2}),
    "osediff": (make_micro_osediff, {"gradient_window": (0, 0)}, {"trainable": "lora", "lora_rank": 2}),
}


def can_compute(dtype: torch.dtype) -> bool:
    """Whether this processor has the kernels of a restorer in these numbers."""
    try:
        layer = nn.Conv2d(1, 1, 3).to(dtype)
        layer(torch.ones(1, 1, 4, 4, dtype=dtype)).sum().backward()
        nn.functional.scaled_dot_product_attention(*torch.ones(3, 1, 1, 2, 4, dtype=dtype))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_tensor_has_a_gradient_and_moves(
    faces: list[Face],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clip: nn.Module,  # noqa: F811
    kind: str,
    precision: str,
) -> None:
    if precision == "fp16":
        if not can_compute(torch.float16):
            pytest.skip("this processor has no kernels for float16")
        monkeypatch.setattr(refl.tune.setup, "make_accelerator", make_cpu_accelerator)
    make, trajectory, fields = KINDS[kind]
    seen: list[TrainedWeights] = []
    start: list[list[Tensor]] = []
    without: list[int] = []
    step = TrainedWeights.step

    def watch(weights: TrainedWeights, *arguments: object) -> float:
        if not any(one is weights for one in seen):
            seen.append(weights)
            start.append([master.detach().clone() for master in weights.masters])
        without.append(sum(master.grad is None for master in weights.masters))
        return step(weights, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainedWeights, "step", watch)
    config = make_config(
        trajectory=trajectory,
        loss={"reward_weight": 1.0, "structure_weight": 1.0, "regularizer_weight": 0.1},
        live_reward={"reward_every_steps": 1, "reward_learning_rate": 1e-3, "reward_weight_decay": 0},
        train={
            **fields,
            "image_size_px": 32,  # so that attention has more than one token at every level
            "weight_decay": 0,  # so that only a gradient moves anything
            "max_steps": 4,
            "mixed_precision": precision,
            "batch_size": 2,
        },
    )
    train(make_material(make(), clip, faces), config, tmp_path / "out")
    assert len(seen) == 2  # of the restorer and of the reward model
    assert not any(without)
    for weights, before in zip(seen, start, strict=True):
        moved = [not torch.equal(master, first) for master, first in zip(weights.masters, before, strict=True)]
        assert all(moved)
        assert all(master.dtype == torch.float32 for master in weights.masters)
    saved = load_model(tmp_path / "out" / "tuned" / "reward")
    assert all(parameter.dtype == torch.float32 for parameter in saved.parameters())


def make_cpu_accelerator(_precision: str, tracker: str, out: Path) -> object:
    return training.processes.make_accelerator("no", tracker, out)


def make_faces(size_px: int) -> tuple[Tensor, Tensor]:
    """A smooth colourful image and one like it, (1, 3, S, S) in [0, 1]."""
    rng = np.random.default_rng(0)
    small = torch.from_numpy(rng.random((1, 3, 16, 16), dtype=np.float32))
    hq = nn.functional.interpolate(small, size=(size_px, size_px), mode="bicubic").clamp(0, 1)
    other = (hq + 0.05 * nn.functional.interpolate(small.flip(2), size=(size_px, size_px), mode="bilinear")).clamp(0, 1)
    return other, hq


def gradient_of(values: Tensor, image: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(values.sum(), image)
    return gradient.double().flatten()


@pytest.mark.parametrize("term", ["structure", "perceptual", "reward"])
def test_a_term_has_the_gradient_of_float32_in_bfloat16_too(term: str) -> None:
    """At 512 px; the parts before `decode` are not the term's."""
    image, hq = make_faces(512)
    image.requires_grad_()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        if term == "structure":
            values = compute_structure_loss(image, hq)
        elif term == "perceptual":
            values = load_perceptual("gmsd", "cpu")(image, hq)
        else:
            values = compute_reward_loss(make_reward(dtype)(image, [None]))
        found.append(gradient_of(values, image))
    assert float(nn.functional.cosine_similarity(*found, dim=0)) >= 0.99


def make_reward(dtype: torch.dtype) -> RewardModel:
    """A reward model of the preset tiny with random weights, in these numbers."""
    torch.manual_seed(0)
    config: ModelConfig = load_model_config("tiny")
    model = build_model(config).requires_grad_(False)
    place(model, "cpu", dtype, keep=model.float32_parameters)
    return model


def test_a_change_of_reference_is_seen_by_the_regularizer_in_bfloat16(faces: list[Face], tmp_path: Path) -> None:
    lines: list[dict[str, float]] = []

    class Brightness(nn.Module):
        def forward(self, images: Tensor, _captions: Sequence[str | None]) -> Tensor:
            return images.clamp(0, 1).mean(dim=(1, 2, 3))

    config = make_config(
        loss={"regularizer_weight": 1.0}, train={"mixed_precision": "bf16", "max_steps": 3, "learning_rate": 1e-2}
    )
    train(
        make_material(make_micro_restorer(), Brightness(), faces), config, tmp_path, lambda *told: lines.append(told[2])
    )
    assert lines[0]["loss/regularizer"] == 0  # the frozen copy is the same numbers
    assert lines[-1]["loss/regularizer"] > 0
