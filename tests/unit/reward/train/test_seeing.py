"""Check that a model learns what only the input photo can tell, and that members learn from different bootstraps."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from db.errors import UserError
from reward.data import load_dataset
from reward.model.checkpoint import load_model
from reward.model.config import ModelConfig
from reward.train.bootstrap import weigh_labels
from reward.train.config import RewardTrainConfig
from reward.train.train import train

SETTINGS: dict[str, Any] = {
    "max_steps": 60,
    "warmup_steps": 2,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "validate_every_steps": 20,
    "workers": 0,
}


@pytest.fixture
def add_inputs(tmp_path: Path) -> Callable[[dict[str, Any]], None]:
    """Give each row an input whose brightness says which of its two images wins: bright, the brighter one."""

    def change(row: dict[str, Any]) -> None:
        wants_bright = int(row["source"].removeprefix("face")) % 2 == 0
        content = io.BytesIO()
        pixels = np.full((16, 16, 3), 230 if wants_bright else 20, np.uint8)
        PilImage.fromarray(pixels).save(content, format="PNG")
        sha256 = hashlib.sha256(content.getvalue()).hexdigest()
        (tmp_path / "dataset" / "images" / f"{sha256}.png").write_bytes(content.getvalue())
        row |= {"lq": f"images/{sha256}.png", "sha256_lq": sha256}
        if not wants_bright:
            row["p_a"] = 1 - row["p_a"]

    return change


@pytest.mark.parametrize("cache_frozen", [False, True])
def test_only_a_seeing_model_learns_what_the_input_decides(
    make_dataset: Callable[..., Path],
    make_config: Callable[..., ModelConfig],
    add_inputs: Callable[[dict[str, Any]], None],
    tmp_path: Path,
    cache_frozen: bool,
) -> None:
    pairs = load_dataset(make_dataset(sources=48, change=add_inputs))
    config = RewardTrainConfig(**SETTINGS, cache_frozen=cache_frozen)
    accuracy = {
        mode: train(pairs, make_config(text_mode=mode), config, tmp_path / mode)["best"]["accuracy"]
        for mode in ("learned", "input")
    }
    assert accuracy["input"] >= 0.9
    assert accuracy["learned"] <= 0.75


def test_members_train_and_continue(
    make_dataset: Callable[..., Path],
    make_config: Callable[..., ModelConfig],
    add_inputs: Callable[[dict[str, Any]], None],
    tmp_path: Path,
) -> None:
    pairs = load_dataset(make_dataset(change=add_inputs))
    model = make_config(text_mode="input+learned", members=3)
    config = RewardTrainConfig(**(SETTINGS | {"max_steps": 6, "validate_every_steps": 0, "checkpoint_every_steps": 3}))
    train(pairs, model, config, tmp_path / "whole")
    state = torch.load(tmp_path / "whole" / "last" / "state.pt", weights_only=True)
    assert state["step"] == 6


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_every_trained_tensor_moves(
    make_dataset: Callable[..., Path],
    make_config: Callable[..., ModelConfig],
    add_inputs: Callable[[dict[str, Any]], None],
    tmp_path: Path,
    precision: str,
) -> None:
    """The heads' first layers from the second step on: their second ones begin as nothing."""
    pairs = load_dataset(make_dataset(sources=12, change=add_inputs))
    model = make_config(text_mode="input+learned", members=2, unlocked_image_groups=2)
    found = []
    for steps in (1, 4):
        changes = {"max_steps": steps, "warmup_steps": 0, "validate_every_steps": 0, "batch_size": 8}
        config = RewardTrainConfig(**(SETTINGS | changes), mixed_precision=precision)
        train(pairs, model, config, tmp_path / f"{steps}")
        found.append(load_model(tmp_path / f"{steps}" / "last"))
    before, after = (dict(one.named_parameters()) for one in found)
    stayed = {name for name, value in before.items() if value.requires_grad and torch.equal(value, after[name])}
    assert stayed == set()


def test_members_weigh_photos_and_people_apart(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset(change=lambda row: row.update(judgments=[f"j{row['pair']}"]))
    pairs = load_dataset(folder)
    alone = weigh_labels(pairs, [2.0] * len(pairs), 1, seed=0)
    assert torch.equal(alone, torch.full((1, len(pairs)), 2.0))
    by_photo = weigh_labels(pairs, [1.0] * len(pairs), 64, seed=0)
    assert by_photo.shape == (64, len(pairs))
    assert torch.equal(by_photo[:, 0], by_photo[:, 1])  # two labels of one photo
    assert by_photo.mean() == pytest.approx(1, abs=0.1)
    lines = [{"uuid": f"j{row.pair}", "person": f"person {at % 2}"} for at, row in enumerate(pairs.rows)]
    (folder / "judgments.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    by_both = weigh_labels(pairs, [1.0] * len(pairs), 64, seed=0)
    assert not torch.equal(by_both[:, 0], by_both[:, 1])
    factor = by_both / by_photo
    assert torch.allclose(factor[:, 0], factor[:, 2])  # of one person
    assert torch.equal(by_both, weigh_labels(pairs, [1.0] * len(pairs), 64, seed=0))


def test_dataset_without_inputs_is_refused_before_training(
    make_dataset: Callable[..., Path], make_config: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    pairs = load_dataset(make_dataset())
    with pytest.raises(UserError, match=r"sees the photo that was restored.*all 32 pairs lack it.*'face0'"):
        train(pairs, make_config(text_mode="input"), RewardTrainConfig(**SETTINGS), tmp_path / "out")
    assert not (tmp_path / "out" / "last").exists()
