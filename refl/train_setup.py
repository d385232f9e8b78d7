"""What ReFL works with: restorer and its frozen copy, reward models, faces, optimizer, monitor; and resuming."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from refl.live_reward import LiveReward
from refl.monitor import Look, Monitor, choose_judges, to_bytes
from refl.perceptual import PerceptualLoss, load_perceptual
from refl.restorers.control import ConditionControlNet
from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.osediff import TIMESTEP, OSEDiff
from refl.sampling import Plan
from refl.train_config import MAY_CHANGE, ReflConfig
from refl.train_data import DegradedFaces, Face, check_faces, stack
from reward.captions import check_captions
from reward.checkpoint import load_model
from reward.data import Pairs
from reward.model import RewardModel, parameter_groups, unlock
from reward.train_setup import make_plain_accelerator
from reward.training_state import find_last, load_state, read_record
from runs import UserError
from runs.store import code_version

log = logging.getLogger(__name__)

MONITOR_DRAW = 2**40
"""The draw of the held-out faces' degradation, which no training step has."""


@dataclass(frozen=True)
class Material:
    """What a training is given."""

    restorer: DiffusionRestorer | OSEDiff
    reward: RewardModel
    faces: Sequence[Face]
    """Of the train split."""
    held_out: Sequence[Face]
    """Of the val split; the monitor looks at the first of them."""
    pairs: Pairs | None = None
    """Labelled pairs to replay, and human ones to measure on."""
    names: dict[str, str] = field(default_factory=dict)
    """For the record: what was asked for as restorer, reward and dataset."""


@dataclass
class Training:
    """All that changes while training, and what it works with."""

    accelerator: Accelerator
    config: ReflConfig
    restorer: DiffusionRestorer | OSEDiff
    frozen_control: ConditionControlNet | None
    live: LiveReward
    frozen_reward: RewardModel
    """As training began; the live one itself where it never learns."""
    perceptual: PerceptualLoss | None
    faces: Sequence[Face]
    images: DegradedFaces
    embedding: Tensor
    """(1, T, C) of the restorer's prompt, computed once."""
    plan: Plan
    optimizer: Any
    trained: list[nn.Parameter]
    averages: list[Tensor]
    monitor: Monitor | None
    held_out: Sequence[Face]
    record: dict[str, Any]
    micro_batch_size: int
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Of this process since the last progress line: term -> sum over images, `images` -> their number."""


def describe(material: Material, config: ReflConfig) -> dict[str, Any]:
    """What a checkpoint says of its origin."""
    digest = hashlib.sha256()
    for face in material.faces:
        digest.update(json.dumps([face.name, face.sha256, face.caption]).encode())
    return {
        "config": config.model_dump(mode="json"),
        "names": material.names,
        "restorer": material.restorer.settings,
        "faces": len(material.faces),
        "faces_sha256": digest.hexdigest(),
        "perceptual": config.loss.perceptual if config.loss.perceptual_weight else None,
        "code_version": code_version(),
    }


def start(material: Material, config: ReflConfig, out: Path) -> Training:
    """Everything in place for the first step, or for the one after the last checkpoint's.

    Raises:
        UserError: see `refl.train.train`.
    """
    accelerator = make_plain_accelerator(config.train.mixed_precision)
    if not material.faces:
        raise UserError("There is no face to train on. Give --faces DIR, or import sources with ground truth (hq).")
    record = describe(material, config)
    if accelerator.is_main_process:
        find_last(out)  # puts right what a kill left half renamed, before the others look
    accelerator.wait_for_everyone()
    last = find_last(out)
    if last:
        check_same(read_record(last), record, last)
    if accelerator.is_local_main_process:
        check_faces([*material.faces, *material.held_out])
    restorer, device = material.restorer, accelerator.device
    size_px = choose_size(restorer, config)
    frozen_control = copy_control(restorer, config)
    try:
        restorer.set_trainable(config.train.trainable, config.train.lora_rank)
    except ValueError as error:
        raise UserError(f"{error}. Set trainable to lora.") from error
    if last:
        restorer.load_trained(last)
    restorer.to(device).eval()
    if frozen_control is not None:
        frozen_control.to(device).requires_grad_(False)
    halve_frozen(restorer, config)
    if config.train.gradient_checkpointing:
        for part in (restorer.unet, restorer.vae, getattr(restorer, "control", None)):
            if part is not None:
                part.enable_gradient_checkpointing()
    trained = restorer.trainable_parameters()
    groups = parameter_groups(restorer, config.train.weight_decay)
    optimizer = accelerator.prepare(torch.optim.AdamW(groups, lr=config.train.learning_rate))
    live, frozen_reward = load_rewards(material, config, accelerator, last)
    share = math.ceil(config.train.batch_size / accelerator.num_processes)
    with torch.no_grad():
        embedding = restorer.encode_prompts([restorer.use.prompt])
    training = Training(
        accelerator=accelerator,
        config=config,
        restorer=restorer,
        frozen_control=frozen_control,
        live=live,
        frozen_reward=frozen_reward,
        perceptual=load_perceptual(config.loss.perceptual, device) if config.loss.perceptual_weight else None,
        faces=material.faces,
        images=DegradedFaces(material.faces, size_px, config.degradation, config.train.seed),
        embedding=embedding,
        plan=make_plan(restorer, config),
        optimizer=optimizer,
        trained=trained,
        averages=[parameter.detach().clone() for parameter in trained] if config.train.ema_decay else [],
        monitor=make_monitor(material, config, size_px, accelerator),
        held_out=material.held_out[: config.train.monitor_faces],
        record=record,
        micro_batch_size=min(config.train.micro_batch_size or share, share),
    )
    if last:
        resume(training, last)
    return training


def copy_control(restorer: DiffusionRestorer | OSEDiff, config: ReflConfig) -> ConditionControlNet | None:
    """The ControlNet before training, which the regularizer compares with; None without a regularizer.

    Raises:
        UserError: there is a regularizer and no ControlNet.
    """
    if not config.loss.regularizer_weight:
        return None
    if isinstance(restorer, OSEDiff):
        raise UserError("OSEDiff has no ControlNet whose outputs could be compared: set regularizer_weight to 0.")
    frozen: ConditionControlNet = deepcopy(restorer.control).eval()
    return frozen


def choose_size(restorer: DiffusionRestorer | OSEDiff, config: ReflConfig) -> int:
    """The side of the faces.

    Raises:
        UserError: the restorer cannot take it.
    """
    size_px = config.train.image_size_px or restorer.image_size_px
    if size_px % restorer.multiple_px:
        raise UserError(f"image_size_px is {size_px}, no multiple of {restorer.multiple_px}; choose one.")
    return size_px


def make_plan(restorer: DiffusionRestorer | OSEDiff, config: ReflConfig) -> Plan:
    """The steps of a trajectory, of the part of the schedule that the config says.

    Raises:
        UserError: fewer steps are left than the gradient's window reaches back.
    """
    trajectory = config.trajectory
    if isinstance(restorer, OSEDiff):
        if trajectory.gradient_window != (0, 0) or trajectory.renoise:
            raise UserError("OSEDiff takes one step: set gradient_window to 0 0 and renoise to 0.")
        return [(TIMESTEP, -1)]
    if trajectory.start_fraction:
        restorer.use = replace(restorer.use, start_fraction=trajectory.start_fraction)
    plan = restorer.plan_steps(trajectory.steps)
    if trajectory.gradient_window[1] >= len(plan):
        raise UserError(
            f"gradient_window ends at {trajectory.gradient_window[1]}, but of {trajectory.steps} steps only "
            f"{len(plan)} are taken from where the restorer starts. Lower it, or raise steps or start_fraction."
        )
    return plan


def halve_frozen(restorer: DiffusionRestorer | OSEDiff, config: ReflConfig) -> None:
    """Keep what is not trained in the forward pass's number format: half the memory."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.mixed_precision)
    if dtype is None:
        return
    for part in (getattr(restorer, "stage1", None), restorer.vae, restorer.unet):
        if part is not None and not any(parameter.requires_grad for parameter in part.parameters()):
            part.to(dtype)


def load_rewards(
    material: Material, config: ReflConfig, accelerator: Accelerator, last: Path | None
) -> tuple[LiveReward, RewardModel]:
    """The reward model that goes on learning, and the one that training began with.

    Raises:
        UserError: the model compares faces with captions and none has one, or there are no pairs to replay.
    """
    if isinstance(material.reward, RewardModel):
        missing = sum(not face.caption for face in material.faces)
        instead = "Put NAME.txt beside each face, or train a reward model with text_mode fixed or learned."
        if note := check_captions(material.reward.config, missing, len(material.faces), "faces", instead=instead):
            log.info(note)
    frozen = material.reward.to(accelerator.device).eval()
    model = frozen
    if config.live_reward.reward_every_steps:
        model = load_model(last / "reward").to(accelerator.device) if last else deepcopy(frozen)
        unlock(model)
    pairs = material.pairs
    live = LiveReward(
        model.eval(),
        config.live_reward,
        accelerator,
        replay=pairs.select("train") if pairs else None,
        held_out=pairs.select("val", "human") if pairs else None,
        seed=config.train.seed,
    )
    if config.live_reward.replay_pairs and not live.replay:
        raise UserError("replay_pairs needs labelled pairs of the train split: give --dataset, or set it to 0.")
    frozen.requires_grad_(False)
    return live, frozen


def make_monitor(material: Material, config: ReflConfig, size_px: int, accelerator: Accelerator) -> Monitor | None:
    """The monitor over the first held-out faces by name; None where it is switched off.

    Raises:
        UserError: there are fewer than two held-out faces.
    """
    if not config.train.monitor_every_steps:
        return None
    faces = material.held_out[: config.train.monitor_faces]
    if len(faces) < 2:
        raise UserError(
            "The monitor needs two held-out faces or more: give --held-out DIR, import sources of the split val with "
            "ground truth, or set monitor_every_steps to 0."
        )
    images = DegradedFaces(faces, size_px, config.degradation, config.train.seed)
    hq, lq = stack([images[MONITOR_DRAW, place] for place in range(len(faces))])
    optimized = config.loss.perceptual if config.loss.perceptual_weight else "none"
    return Monitor(
        lq=lq.to(accelerator.device),
        hq=hq.to(accelerator.device),
        seeds=list(range(len(faces))),
        judges=choose_judges(optimized, to_bytes(hq)),
        judges_needed=config.train.hacking_judges,
    )


def check_same(record: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """That a checkpoint is of this restorer, these faces and this way of training.

    Raises:
        UserError: something that decides the weights differs; named.
    """
    for what in ("names", "restorer", "faces_sha256"):
        if record[what] != now[what]:
            raise UserError(
                f"{folder} was trained with another {what.removesuffix('_sha256')} ({record[what]}). Give the same to "
                "continue it, or another --out."
            )
    for table, fields in now["config"].items():
        for name, after in fields.items():
            before = record["config"][table].get(name)
            if before != after and name not in MAY_CHANGE:
                raise UserError(
                    f"{folder} was trained with {name} {before!r}, not {after!r}. Give the same settings to continue "
                    "it, or another --out."
                )


def resume(training: Training, last: Path) -> None:
    """Take over the rest of a checkpoint's state; its weights are loaded already."""
    state = load_state(last)
    training.step = state["step"]
    training.optimizer.load_state_dict(state["optimizer"])
    training.live.load_state_dict(state["live"])
    if training.accelerator.scaler is not None:
        training.accelerator.scaler.load_state_dict(state["scaler"])
    for average, value in zip(training.averages, state["averages"], strict=True):
        average.copy_(value)
    if training.accelerator.is_main_process:
        training.sums = state["sums"]
    if training.monitor and state["monitor"]:
        load_monitor(training.monitor, state["monitor"])
    log.info("continuing after step %s of %s", training.step, training.config.train.max_steps)


def save_monitor(monitor: Monitor | None) -> dict[str, Any] | None:
    """What a continuation needs of the monitor: the first look, and the history."""
    if monitor is None or monitor.first is None:
        return None
    first = monitor.first
    return {
        "first_restored": monitor.first_restored,
        "step": first.step,
        "rewards": {name: torch.from_numpy(values) for name, values in first.rewards.items()},
        "judges": {name: torch.from_numpy(values) for name, values in first.judges.items()},
        "history": monitor.history,
    }


def load_monitor(monitor: Monitor, state: dict[str, Any]) -> None:
    """Take over what `save_monitor` gave."""
    rewards, judges = ({name: values.numpy() for name, values in state[part].items()} for part in ("rewards", "judges"))
    monitor.first = Look(state["step"], rewards, judges)
    monitor.first_restored = state["first_restored"].to(monitor.lq.device)
    monitor.history = state["history"]
