"""Training: it learns, equals itself when it is stopped, accumulates exactly, and refuses what it cannot do."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from db.errors import UserError
from reward.data import Pairs, load_dataset
from reward.model.checkpoint import build_model, load_model
from reward.model.config import ModelConfig
from reward.train.config import RewardTrainConfig
from reward.train.train import compute_learning_rate, train
from tests.gradients import difference, record_gradients
from training.batches import choose_batch, split_batch

MAX_DIFFERENCE = 9e-7
"""Of one step's gradients, against their length, between a batch and its parts: ten times the most measured with
ATEN_CPU_CAPABILITY unset, avx2 and default."""

logging.getLogger("accelerate").setLevel(logging.ERROR)


def make_train_config(**fields: Any) -> RewardTrainConfig:
    defaults: dict[str, Any] = {
        "max_steps": 6,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "validate_every_steps": 3,
        "checkpoint_every_steps": 2,
        "log_every_steps": 2,
        "workers": 0,
    }
    return RewardTrainConfig(**{**defaults, **fields})


@pytest.fixture
def learned(make_config: Callable[..., ModelConfig]) -> ModelConfig:
    """The small model, all of its image tower trained, against a learned prompt."""
    return make_config(text_mode="learned", unlocked_image_groups=5, unlocked_text_blocks=0)


@pytest.fixture
def pairs(make_dataset: Callable[..., Path]) -> Pairs:
    return load_dataset(make_dataset())


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def largest_difference(one: Path, other: Path) -> float:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def relative_difference(one: Path, other: Path, model: ModelConfig, seed: int = 0) -> float:
    """How far two trainings ended apart, against how far the first went from its start.

    Single weights are no measure: AdamW takes a step of full length where a gradient is mere rounding.
    """
    torch.manual_seed(seed)
    start = {name.removeprefix("clip."): value for name, value in build_model(model).state_dict().items()}
    first, second = weights_of(one), weights_of(other)
    apart = sum(float((first[name] - second[name]).double().square().sum()) for name in first)
    moved = sum(float((first[name] - start[name]).double().square().sum()) for name in first)
    return float(np.sqrt(apart / moved))


def test_it_learns_and_leaves_a_whole_checkpoint(pairs: Pairs, learned: ModelConfig, tmp_path: Path) -> None:
    told: list[dict[str, float]] = []
    config = make_train_config(max_steps=40, learning_rate=3e-3, validate_every_steps=20)
    result = train(pairs, learned, config, tmp_path / "out", lambda _done, _total, values: told.append(values))
    assert result["best"]["accuracy"] >= 0.9
    assert result["best"]["n"] == 8
    names = {name for values in told for name in values}
    assert {"loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"} <= names
    assert {"val/accuracy", "val/loss", "val/calibration_error"} <= names
    assert told[-1]["rewards/margins"] == pytest.approx(
        told[-1]["rewards/chosen"] - told[-1]["rewards/rejected"], abs=1e-6
    )
    assert load_model(tmp_path / "out" / "best").config == learned


def die_at(step: int) -> Callable[[int, int, dict[str, float]], None]:
    """Progress that ends the training as a kill would: nothing is written any more."""

    def die(done: int, _total: int, _values: dict[str, float]) -> None:
        if done == step:
            raise KeyboardInterrupt

    return die


def test_continuing_equals_never_having_stopped(pairs: Pairs, learned: ModelConfig, tmp_path: Path) -> None:
    config = make_train_config(ema_decay=0.5, log_every_steps=1)
    train(pairs, learned, config, tmp_path / "whole")
    for stop_after in (1, 3, 4, 5):
        out = tmp_path / f"stopped after {stop_after}"
        with pytest.raises(KeyboardInterrupt):
            train(pairs, learned, config, out, die_at(stop_after))
        assert train(pairs, learned, config, out)["step"] == 6
        for folder in ("last", "best"):
            assert largest_difference(tmp_path / "whole" / folder, out / folder) == 0, (stop_after, folder)


def test_copies_stay_at_every_nth_step_and_change_nothing(pairs: Pairs, learned: ModelConfig, tmp_path: Path) -> None:
    plain, kept = tmp_path / "plain", tmp_path / "kept"
    fields = {"ema_decay": 0.5, "validate_every_steps": 0, "log_every_steps": 1}
    train(pairs, learned, make_train_config(**fields), plain)
    with pytest.raises(KeyboardInterrupt):
        train(pairs, learned, make_train_config(**fields, keep_every_steps=1), kept, die_at(4))
    assert sorted(folder.name for folder in (kept / "steps").iterdir()) == ["000001", "000002", "000003", "000004"]
    # continued with another policy, which decides nothing about the weights
    train(pairs, learned, make_train_config(**fields, keep_every_steps=3, keep_steps_max=2), kept)
    assert sorted(folder.name for folder in (kept / "steps").iterdir()) == ["000004", "000006"]
    for folder in ("last", "best"):
        assert largest_difference(plain / folder, kept / folder) == 0
    stayed = kept / "steps" / "000006"
    assert json.loads((stayed / "training.json").read_text())["step"] == 6
    assert load_model(stayed).config == learned
    assert largest_difference(stayed, kept / "best") == 0  # what is used: the average
    assert largest_difference(stayed, kept / "last") > 0


@pytest.mark.parametrize("batch_size", [8, 7])
def test_accumulating_small_batches_equals_the_large_one(
    pairs: Pairs, learned: ModelConfig, tmp_path: Path, batch_size: int
) -> None:
    found: dict[int, list[torch.Tensor]] = {}
    for size, seed in ((0, 0), (2, 0), (1, 1)):
        config = make_train_config(batch_size=batch_size, max_steps=1, warmup_steps=0, micro_batch_size=size, seed=seed)
        with record_gradients(partial(found.__setitem__, size)):
            train(pairs, learned, config.model_copy(update={"validate_every_steps": 0}), tmp_path / f"out{size}")
    assert difference(found[0], found[2]) < MAX_DIFFERENCE
    assert difference(found[0], found[1]) > 0.1  # other weights and pairs


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_cached_frozen_blocks_change_nothing(
    pairs: Pairs, make_config: Callable[..., ModelConfig], tmp_path: Path, precision: str
) -> None:
    model = make_config(text_mode="learned", unlocked_image_groups=2, unlocked_text_blocks=0)
    config = make_train_config(mixed_precision=precision)
    train(pairs, model, config, tmp_path / "plain")
    train(pairs, model, config.model_copy(update={"cache_frozen": True}), tmp_path / "cached")
    assert (tmp_path / "cached" / "frozen" / "activations.bin").exists()
    assert largest_difference(tmp_path / "plain" / "last", tmp_path / "cached" / "last") == 0


def test_checkpointing_activations_changes_nothing(pairs: Pairs, learned: ModelConfig, tmp_path: Path) -> None:
    config = make_train_config(max_steps=3)
    train(pairs, learned, config, tmp_path / "plain")
    train(pairs, learned, config.model_copy(update={"gradient_checkpointing": True}), tmp_path / "again")
    assert largest_difference(tmp_path / "plain" / "last", tmp_path / "again" / "last") < 1e-6


def test_swapping_every_pair_changes_nothing(pairs: Pairs, learned: ModelConfig, tmp_path: Path) -> None:
    swapped = tuple(
        dataclasses.replace(
            row, image_a=row.image_b, image_b=row.image_a, sha256_a=row.sha256_b, sha256_b=row.sha256_a, p_a=1 - row.p_a
        )
        for row in pairs.rows
    )
    config = make_train_config(max_steps=3)
    train(pairs, learned, config, tmp_path / "one")
    train(Pairs(pairs.path, swapped), learned, config, tmp_path / "other")
    assert relative_difference(tmp_path / "one" / "last", tmp_path / "other" / "last", learned) < 1e-3


def test_labels_weigh_by_who_made_them(make_dataset: Callable[..., Path], learned: ModelConfig, tmp_path: Path) -> None:
    """SVM labels that say the contrary, weighed with nothing, are as if they were not there."""

    def contradict(row: dict[str, Any]) -> None:
        if row["split"] == "train" and row["pair"].endswith("1"):
            row.update(origin="svm", p_a=1 - row["p_a"])

    both = load_dataset(make_dataset(name="both", change=contradict))
    human = Pairs(both.path, tuple(row for row in both.rows if row.origin == "human"))
    config = make_train_config(svm_weight=0)
    train(both, learned, config, tmp_path / "both")
    train(human, learned, config, tmp_path / "human")
    assert largest_difference(tmp_path / "both" / "last", tmp_path / "human" / "last") == 0


@pytest.mark.parametrize(
    ("of_model", "of_training", "change", "said"),
    [
        ({}, {}, {"split": "test"}, "has nothing to train on"),
        ({}, {}, {"split": "train"}, "no human label other than ties in the split val"),
        ({"text_mode": "caption"}, {}, {}, "None of the 32 pairs to train on has a caption"),
        ({}, {"mixed_precision": "fp16"}, {}, "fp16 needs a GPU"),
        ({}, {"tracker": "wandb"}, {}, "The tracker wandb is not installed"),
    ],
)
def test_what_cannot_be_trained_is_one_clear_line(
    make_dataset: Callable[..., Path],
    make_config: Callable[..., ModelConfig],
    tmp_path: Path,
    of_model: dict[str, Any],
    of_training: dict[str, Any],
    change: dict[str, Any],
    said: str,
) -> None:
    data = load_dataset(make_dataset(change=lambda row: row.update(change)))
    model = make_config(**{"text_mode": "learned", "unlocked_text_blocks": 0, **of_model})
    with pytest.raises(UserError, match=said):
        train(data, model, make_train_config(**of_training), tmp_path / "out")
    assert not (tmp_path / "out" / "last").exists()


def test_other_settings_or_labels_do_not_continue_a_training(
    pairs: Pairs, learned: ModelConfig, tmp_path: Path
) -> None:
    config = make_train_config(max_steps=3)
    train(pairs, learned, config, tmp_path / "out")
    with pytest.raises(UserError, match=r"was trained with learning_rate 0.001, not 0.01"):
        train(pairs, learned, config.model_copy(update={"learning_rate": 0.01}), tmp_path / "out")
    fewer = Pairs(pairs.path, pairs.rows[:-6])
    with pytest.raises(UserError, match="with other labels"):
        train(fewer, learned, config, tmp_path / "out")


def test_every_pair_is_seen_once_an_epoch_whatever_the_processes() -> None:
    seen = np.concatenate([choose_batch(step, 10, 4, seed=0) for step in range(3)])
    assert sorted(seen.tolist()) == list(range(10))
    last = choose_batch(2, 10, 4, seed=0)
    assert len(last) == 2
    for processes in (1, 2, 3):
        parts = [split_batch(last, processes, process, 1) for process in range(processes)]
        assert sorted(place for part in parts for places in part for place in places) == sorted(last.tolist())
        assert all(len(places) == 1 for part in parts for places in part)


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    config = make_train_config(max_steps=12, warmup_steps=2, learning_rate=1.0)
    assert compute_learning_rate(0, config) == 0.5
    assert compute_learning_rate(2, config) == 1.0
    assert compute_learning_rate(7, config) == pytest.approx(0.5)
    assert compute_learning_rate(12, config) == pytest.approx(0.0, abs=1e-12)
