"""Prepare a training before its first step: devices, pairs, the model, and the state of an earlier call."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dataset.labelled import LabelledPair
from db.errors import UserError
from reward.data import Pairs, check_pairs
from reward.model.captions import check_captions, describe_long_captions
from reward.model.checkpoint import build_model, load_model
from reward.model.config import ModelConfig
from reward.model.model import RewardModel
from reward.train.bootstrap import weigh_labels
from reward.train.config import RewardTrainConfig
from reward.train.frozen_cache import cache_frozen
from reward.train.pairs import InputReader, PairScorer
from runs.store import code_version
from training.precision import DTYPES, TrainedWeights, place
from training.processes import make_accelerator
from training.settings import check_settings
from training.state import find_checkpoint, load_state, set_random_states

log = logging.getLogger(__name__)

N_SUMS = 6


@dataclass
class Training:
    """All that changes while training, and what it works with."""

    accelerator: Accelerator
    config: RewardTrainConfig
    model: RewardModel
    scorer: PairScorer
    weights: TrainedWeights
    reader: InputReader
    pairs: Pairs
    held_out: Pairs
    record: dict[str, Any]
    """For `training.json`."""
    micro_batch_size: int
    sums: Tensor
    """(N_SUMS,) of this process since the last progress line; see `train.sum_up`."""
    step: int = 0
    best: dict[str, float] | None = None
    """Measurements of `best/`, with its step."""
    label_weights: Tensor = field(default_factory=lambda: torch.ones(0))
    """(members, pairs) factors on the loss."""


def choose_pairs(pairs: Pairs, model_config: ModelConfig, config: RewardTrainConfig) -> tuple[Pairs, Pairs]:
    """(pairs of the train split that weigh anything, people's labels of the val split).

    Raises:
        UserError: there is nothing to train on, nothing to measure on, or no caption where captions are wanted.
    """
    factors = config.origin_weights
    weighing = tuple(
        row
        for row in pairs.select("train").rows
        if row.weight * factors[row.origin] > 0 and draw_share(row.source, config.seed) < config.label_share
    )
    if not weighing:
        raise UserError(
            f"{pairs.path} has nothing to train on: {pairs.describe()}, but none in the split train with a weight "
            "above 0. Export with the split train, or check human_weight, svm_weight, constructed_weight and "
            "label_share."
        )
    held_out = Pairs(pairs.path, tuple(row for row in pairs.select("val", "human").rows if row.weight > 0))
    if not config.validate_every_steps:
        held_out = Pairs(pairs.path, ())
    elif not any(row.p_a != 0.5 for row in held_out.rows):
        raise UserError(
            f"{pairs.path} has no human label other than ties in the split val to measure on: {pairs.describe()}. "
            "Export some, or set validate_every_steps to 0 to train unmeasured."
        )
    report_captions(weighing, "pairs to train on", model_config)
    report_captions(held_out.rows, "held-out pairs", model_config, use_prompt=True)
    return Pairs(pairs.path, weighing).with_inputs(model_config), held_out.with_inputs(model_config)


def draw_share(source: str, seed: int) -> float:
    """0 … 1 of a photo by a seeded hash: a larger `label_share` takes the same photos and more."""
    return int(hashlib.sha256(f"label share\n{seed}\n{source}".encode()).hexdigest()[:13], 16) / 16**13


def report_captions(
    rows: Sequence[LabelledPair], things: str, config: ModelConfig, *, use_prompt: bool = False
) -> None:
    """`check_captions` of pairs, and log where the prompt stands in and how many captions are too long.

    Raises:
        UserError: not one has a caption, and the prompt may not stand in for all.
    """
    without = sum(not row.caption for row in rows)
    instead = "Set it to fixed or learned, or import the photos with captions."
    note = check_captions(config, without, len(rows), things, instead=instead, use_prompt=use_prompt)
    for said in (note, describe_long_captions(config, (row.caption for row in rows))):
        if said:
            log.info(said)


def describe(used: Pairs, model_config: ModelConfig, config: RewardTrainConfig) -> dict[str, Any]:
    """Describe the origin of a checkpoint: settings, dataset, how many labels by whom, code version."""
    return {
        "model": model_config.model_dump(mode="json"),
        "train": config.model_dump(mode="json"),
        "dataset": str(used.path),
        "dataset_sha256": used.fingerprint,
        "labels": dict(Counter(f"{row.split}, {row.origin}, {row.made_by}" for row in used.rows)),
        "code_version": code_version(),
    }


def start(pairs: Pairs, model_config: ModelConfig, config: RewardTrainConfig, out: Path) -> Training:
    """Everything in place for the first step, or for the one after the last checkpoint's.

    Raises:
        UserError: see `train.train`.
    """
    train_pairs, held_out = choose_pairs(pairs, model_config, config)
    used = replace(train_pairs, rows=train_pairs.rows + held_out.rows)
    record = describe(used, model_config, config)
    accelerator = make_accelerator(config.mixed_precision, config.tracker, out)

    def check(found: dict[str, Any], folder: Path) -> None:
        check_same(found, record, model_config, config, folder)

    last = find_checkpoint(accelerator, out, check)
    log.info("checking the images of %s", used.describe())
    sha256 = check_pairs(used, known=out / "checked.json") if accelerator.is_local_main_process else {}
    torch.manual_seed(config.seed)
    model = load_model(last) if last else build_model(model_config)
    model.gradient_checkpointing = config.gradient_checkpointing
    weights = place_model(model, config, accelerator)
    micro = config.choose_micro_batch_size(accelerator.num_processes)
    cache = None
    if config.cache_frozen:
        cache = cache_frozen(
            model, used, sha256, out / "frozen", accelerator, batch_images=2 * micro, workers=config.workers
        )
    factors = config.origin_weights
    training = Training(
        accelerator=accelerator,
        config=config,
        model=model,
        scorer=PairScorer(model, frozen_done=cache is not None),
        weights=weights,
        reader=InputReader(accelerator, model, cache, config.workers),
        pairs=train_pairs,
        held_out=held_out,
        record=record,
        micro_batch_size=micro,
        sums=torch.zeros(N_SUMS, device=accelerator.device),
        label_weights=weigh_labels(
            train_pairs,
            [row.weight * factors[row.origin] for row in train_pairs.rows],
            model_config.members,
            config.seed,
        ),
    )
    if last:
        resume(training, last)
    return training


def place_model(model: RewardModel, config: RewardTrainConfig, accelerator: Accelerator) -> TrainedWeights:
    """Put the model on the device, its frozen part in the forward pass's number format; returns what is trained."""
    dtype = DTYPES[config.mixed_precision]
    weights = TrainedWeights(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        dtype,
        accelerator.device,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        optimizer=config.optimizer,
        keep=model.float32_parameters,
        ema_decay=config.ema_decay,
    )
    weights.start_alike(accelerator)
    place(model, accelerator.device, dtype, keep=model.float32_parameters)
    return weights


def resume(training: Training, last: Path) -> None:
    """Take over the rest of a checkpoint's state; its weights are loaded already."""
    state = load_state(last)
    training.step, training.best = state["step"], state["best"]
    training.weights.load_state_dict(state["weights"])
    if training.accelerator.is_main_process:
        training.sums.copy_(state["sums"])
    set_random_states(state["random"], training.accelerator.process_index)
    if training.step < training.config.max_steps:
        log.info("continuing after step %s of %s", training.step, training.config.max_steps)
    else:
        log.info("%s is finished: its %s steps are done, nothing is left to train", last.parent, training.step)


def check_same(
    record: dict[str, Any], now: dict[str, Any], model: ModelConfig, config: RewardTrainConfig, folder: Path
) -> None:
    """Check that a checkpoint is of this model, dataset and way of training.

    Args:
        record: its `training.json`.
        now: the same of the training that is to continue it: `dataset` and `dataset_sha256`.
    Raises:
        UserError: something that decides the weights differs; named.
    """
    if record["dataset_sha256"] != now["dataset_sha256"]:
        raise UserError(
            f"{folder} was trained on {record['dataset']}, with other labels than {now['dataset']} has now. Name "
            "another --out to train on these."
        )
    check_settings(record["model"], model, folder)
    check_settings(record["train"], config, folder)
