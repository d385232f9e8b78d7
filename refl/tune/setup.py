"""Set up what ReFL works with: restorer, reward models, faces, optimizer, monitor; or resume it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config
import torch._functorch.config
from accelerate import Accelerator
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from db.errors import UserError
from refl.published.control import ConditionControlNet
from refl.restorers.content import name_changes
from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.lora import TRAINED_FILE
from refl.restorers.one_step import OneStepRestorer
from refl.tune.config import ReflConfig
from refl.tune.data import DegradedFaces, Face, check_faces, stack
from refl.tune.identity import IdentityLoss, load_identity
from refl.tune.live_reward import LiveReward, copy_for_learning
from refl.tune.monitor import Monitor, choose_judges, to_bytes
from refl.tune.perceptual import PerceptualLoss, load_perceptual
from refl.tune.sampling import Plan
from reward.data import Pairs, check_pairs
from reward.model.captions import check_captions, describe_long_captions
from reward.model.checkpoint import load_changes, load_model
from reward.model.model import RewardModel, unlock
from reward.model.reward_set import RewardSet
from reward.model.set_config import RewardConfig, SetConfig
from reward.score.scorer import split_name
from reward.train.frozen_cache import cache_frozen
from runs.store import code_version
from training.precision import DTYPES, TrainedWeights, copy_values, place
from training.processes import make_accelerator
from training.settings import check_settings, is_same_file
from training.state import find_checkpoint, load_state

log = logging.getLogger(__name__)

MONITOR_DRAW = 2**40
"""The draw of the held-out faces' degradation, which no training step has."""
MAX_COMPILED = 128
"""Forms of one block that torch.compile may make; it gives up after eight otherwise."""
REWARD_FOLDER = "reward"
"""Of a checkpoint: what the live reward model has learned."""


@dataclass(frozen=True)
class Material:
    """Inputs of a training."""

    restorer: DiffusionRestorer | OneStepRestorer
    reward: RewardModel | RewardSet
    faces: Sequence[Face]
    """Of the train split."""
    held_out: Sequence[Face]
    """Of the val split; the monitor checks the first of them."""
    pairs: Pairs | None = None
    """Labelled pairs to replay, and human ones to measure on."""
    names: dict[str, str] = field(default_factory=dict)
    """For the record: what was asked for as restorer, reward and dataset."""
    reward_version: str = ""
    """`compute_version` of the reward model, where it goes on learning: what it learns is saved beside it."""


@dataclass
class Training:
    """All that changes while training, and what it works with."""

    accelerator: Accelerator
    config: ReflConfig
    restorer: DiffusionRestorer | OneStepRestorer
    frozen_control: ConditionControlNet | None
    """As training began, for the regularizer; None without one, and where adapters are trained."""
    live: LiveReward
    frozen_reward: RewardModel | RewardSet
    """As training began; the live one itself where it never learns."""
    perceptual: PerceptualLoss | None
    identity: IdentityLoss | None
    faces: Sequence[Face]
    images: DegradedFaces
    embedding: Tensor
    """(1, T, C) of the restorer's prompt, computed once."""
    plan: Plan
    weights: TrainedWeights
    monitor: Monitor | None
    held_out: Sequence[Face]
    record: dict[str, Any]
    micro_batch_size: int
    rollout_batch_size: int
    sums: Tensor
    """(terms + members of the reward + 3,) of this process since the last progress line; see `list_sums`."""
    step: int = 0

    @property
    def checks(self) -> list[dict[str, Any]]:
        """What the monitor has seen so far, a row a check; none without one."""
        return self.monitor.history if self.monitor else []


def describe(material: Material, config: ReflConfig) -> dict[str, Any]:
    """Describe the origin of a checkpoint."""
    digest = hashlib.sha256()
    for face in material.faces:
        digest.update(json.dumps([face.name, face.sha256, face.caption]).encode())
    return {
        "config": config.model_dump(mode="json"),
        "names": material.names,
        "restorer": deepcopy(material.restorer.settings),  # as it is now: loading a checkpoint adds to them
        "reward_base": {"model": _locate(material.names.get("reward", "")), "version": material.reward_version},
        "faces": len(material.faces),
        "faces_sha256": digest.hexdigest(),
        "dataset_sha256": material.pairs.fingerprint if material.pairs else "",
        "perceptual": config.loss.perceptual if config.loss.perceptual_weight else None,
        "code_version": code_version(),
    }


def _locate(reward: str) -> str:
    """A reward model as `load_named` takes it from any folder."""
    what = split_name(reward)[1]
    path = Path(what).expanduser()
    return str(path.resolve()) if what and path.exists() else what


def list_terms(config: ReflConfig) -> list[str]:
    """The terms of the loss that are computed, in order."""
    loss = config.loss
    weights = {
        "reward": loss.reward_weight,
        "structure": loss.structure_weight,
        "perceptual": loss.perceptual_weight,
        "identity": loss.identity_weight,
        "regularizer": loss.regularizer_weight,
    }
    return [name for name, weight in weights.items() if weight]


def list_sums(config: ReflConfig, live: LiveReward) -> list[str]:
    """What progress lines tell the means of, in order; of a reward of several members each one, spread and pull."""
    members = live.member_names if config.loss.reward_weight else []
    apart = [*(f"reward/{name}" for name in members), *(("reward_spread", "pull") if members else ())]
    return [*(f"loss/{term}" for term in list_terms(config)), *apart]


def start(material: Material, config: ReflConfig, out: Path) -> Training:
    """Everything in place for the first step, or for the one after the last checkpoint's.

    Raises:
        UserError: see `refl.tune.train.train`.
    """
    accelerator = make_accelerator(config.train.mixed_precision, config.train.tracker, out)
    check_material(material, config)
    record = describe(material, config)
    last = find_checkpoint(accelerator, out, lambda found, folder: check_same(found, record, config, folder))
    if accelerator.is_local_main_process:
        check_faces([*material.faces, *material.held_out], known=out / "checked.json")
    restorer, device = material.restorer, accelerator.device
    size_px = choose_size(restorer, config)
    frozen_control, weights = place_restorer(restorer, config, accelerator, last)
    live, frozen_reward = place_rewards(material, config, accelerator, out, last)
    share = math.ceil(config.train.batch_size / accelerator.num_processes)
    training = Training(
        accelerator=accelerator,
        config=config,
        restorer=restorer,
        frozen_control=frozen_control,
        live=live,
        frozen_reward=frozen_reward,
        perceptual=load_perceptual(config.loss.perceptual, device) if config.loss.perceptual_weight else None,
        identity=load_identity(device) if config.loss.identity_weight else None,
        faces=material.faces,
        images=DegradedFaces(material.faces, size_px, config.degradation, config.train.seed),
        embedding=restorer.encode_prompts([restorer.use.prompt]),
        plan=make_plan(restorer, config),
        weights=weights,
        monitor=make_monitor(material, config, size_px, accelerator),
        held_out=material.held_out[: config.train.monitor_faces],
        record=record,
        micro_batch_size=min(config.train.micro_batch_size or share, share),
        rollout_batch_size=min(config.train.rollout_batch_size or share, share),
        sums=torch.zeros(len(list_sums(config, live)) + 1, dtype=torch.float64, device=device),
    )
    if last:
        resume(training, last)
    return training


def check_material(material: Material, config: ReflConfig) -> None:
    """Check that there is something to train on, and captions for a reward model that compares faces with them.

    Raises:
        UserError: something is missing.
    """
    if not material.faces and material.held_out:
        raise UserError(
            f"All faces ({len(material.held_out)}) are held out for the monitor, none is left to train on. Give more, "
            "of other people, or the monitor's own by --held-out DIR."
        )
    if not material.faces:
        raise UserError("There is no face to train on. Give --faces DIR, or import sources with ground truth (hq).")
    if isinstance(material.reward, RewardModel | RewardSet):
        check_face_captions(material.reward.config, material.faces, use_prompt=config.loss.use_prompt)
        check_reward_input(material.reward.config, config)
    pairs = material.pairs
    if config.live_reward.replay_pairs and not (pairs and pairs.select("train").rows):
        raise UserError("replay_pairs needs labelled pairs of the train split: give --dataset, or set it to 0.")


def check_face_captions(config: RewardConfig, faces: Sequence[Face], *, use_prompt: bool) -> None:
    """Check that a reward model which compares faces with captions gets some, and log other doubts.

    Raises:
        UserError: not one face has a caption, and the prompt may not stand in.
    """
    missing = sum(not face.caption for face in faces)
    instead = (
        "Put NAME.txt beside each face, give --use-prompt to compare all with the model's prompt, or train a reward "
        "model with text_mode fixed or learned."
    )
    note = check_captions(config, missing, len(faces), "faces", instead=instead, use_prompt=use_prompt)
    for said in (note, describe_long_captions(config, (face.caption for face in faces))):
        if said:
            log.info(said)


def check_reward_input(model: RewardConfig, config: ReflConfig) -> None:
    """Check that a reward which goes on learning can: not a set, nor a model whose input is the ground truth itself.

    Raises:
        UserError: it would learn to tell that a photo equals itself, or its members' scales would no longer be theirs.
    """
    if isinstance(model, SetConfig) and config.live_reward.reward_every_steps:
        raise UserError(
            "A reward set does not go on learning: its members' scales were measured as they are. Set "
            "reward_every_steps to 0, or take one model of several members as the reward."
        )
    if model.needs_input and model.input_photo == "hq" and config.live_reward.reward_every_steps:
        raise UserError(
            "The reward model sees the ground truth beside each image (input_photo hq), and its updates would have the "
            "ground truth win against itself. Set reward_every_steps to 0, or take a model with input_photo lq."
        )


def place_restorer(
    restorer: DiffusionRestorer | OneStepRestorer, config: ReflConfig, accelerator: Accelerator, last: Path | None
) -> tuple[ConditionControlNet | None, TrainedWeights]:
    """Make a restorer trainable, on the device, frozen parts in the forward pass's number format.

    Returns:
        the ControlNet before training where the regularizer needs it, and the trained weights.
    Raises:
        UserError: it cannot be trained so.
    """
    train, device = config.train, accelerator.device
    dtype = DTYPES[train.mixed_precision]
    frozen_control = None
    if config.loss.regularizer_weight and train.trainable == "control" and restorer.control is not None:
        frozen_control = deepcopy(restorer.control).eval().requires_grad_(False)
        place(frozen_control, device, dtype)
    with torch.random.fork_rng():
        torch.manual_seed(train.seed)  # adapters begin with random numbers
        try:
            restorer.set_trainable(train.trainable, train.lora_rank)
        except ValueError as error:
            raise UserError(f"{error}. Set trainable to lora.") from error
    for parameter in restorer.trainable_parameters():
        parameter.data = parameter.data.float()  # new adapters take the number format of what they adapt
    if last:
        restorer.load_trained(last)
    restorer.hold_prompt()
    restorer.eval()
    weights = TrainedWeights(
        restorer.trainable_parameters(),
        dtype,
        device,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        optimizer=train.optimizer,
        ema_decay=train.ema_decay,
    )
    weights.start_alike(accelerator)
    for name, part in restorer.named_children():
        # these are small, run once per image, SwinIR makes masks in float32, and OSDFace's words hang on rounding
        place(part, device, torch.float32 if name in ("stage1", "text", "prompt_encoder") else dtype)
    for part in filter(None, (restorer.unet, restorer.vae, restorer.control)):
        if train.gradient_checkpointing:
            part.enable_gradient_checkpointing()
        if train.compile:
            compile_blocks(part)
    if train.gradient_checkpointing:
        checkpoint_residual_blocks(restorer.vae)
    return frozen_control, weights


def checkpoint_residual_blocks(vae: nn.Module) -> None:
    """Keep activations of one residual block of an autoencoder at a time.

    diffusers checkpoints several together, and at 512 px what the last three compute again is most of a step's
    activations.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def compile_blocks(part: nn.Module) -> None:
    """Compile each transformer block: a few widths, many alike."""
    # each width is compiled for itself, and gradient norms keep the graph
    torch._dynamo.config.recompile_limit = MAX_COMPILED
    torch._functorch.config.donated_buffer = False
    for module in part.modules():
        if isinstance(module, BasicTransformerBlock):
            module.compile(dynamic=False)


def choose_size(restorer: DiffusionRestorer | OneStepRestorer, config: ReflConfig) -> int:
    """The side of the faces.

    Raises:
        UserError: the restorer cannot take it.
    """
    size_px = config.train.image_size_px or restorer.image_size_px
    if size_px % restorer.multiple_px:
        raise UserError(f"image_size_px is {size_px}, not a multiple of {restorer.multiple_px}; choose one.")
    return size_px


def make_plan(restorer: DiffusionRestorer | OneStepRestorer, config: ReflConfig) -> Plan:
    """The steps of a trajectory, of the part of the schedule that the config says.

    Raises:
        UserError: fewer steps are left than the gradient's window reaches back.
    """
    trajectory = config.trajectory
    if isinstance(restorer, OneStepRestorer):
        if trajectory.gradient_window != (0, 0) or trajectory.renoise:
            raise UserError("This restorer takes one step: set gradient_window to 0 0 and renoise to 0.")
        return [(restorer.use.timestep, -1)]
    if trajectory.start_fraction:
        restorer.use = replace(restorer.use, start_fraction=trajectory.start_fraction)
    plan = restorer.plan_steps(trajectory.steps)
    if trajectory.gradient_window[1] >= len(plan):
        raise UserError(
            f"gradient_window ends at {trajectory.gradient_window[1]}, but of {trajectory.steps} steps only "
            f"{len(plan)} are taken from where the restorer starts. Lower it, or raise steps or start_fraction."
        )
    return plan


def place_rewards(
    material: Material, config: ReflConfig, accelerator: Accelerator, out: Path, last: Path | None
) -> tuple[LiveReward, RewardModel | RewardSet]:
    """The reward model that goes on learning, and the one that training began with, which share what neither trains."""
    frozen, model, device = material.reward.eval(), material.reward, accelerator.device
    dtype = DTYPES[config.train.mixed_precision]
    learns = bool(config.live_reward.reward_every_steps)
    for part in list_models(frozen):
        part.gradient_checkpointing = config.train.gradient_checkpointing
    if learns:
        assert isinstance(frozen, RewardModel)
        unlock(frozen)
        model = copy_for_learning(frozen, [parameter for parameter in frozen.parameters() if parameter.requires_grad])
        if last:
            load_learned(model, last / REWARD_FOLDER)
    pairs = material.pairs
    if pairs and isinstance(frozen, RewardModel | RewardSet):
        pairs = None if isinstance(frozen, RewardSet) else pairs.with_inputs(frozen.config)
    live = LiveReward(
        model,
        config.live_reward,
        accelerator,
        replay=pairs.select("train") if pairs else None,
        held_out=pairs.select("val", "human") if pairs else None,
        seed=config.train.seed,
        mixed_precision=config.train.mixed_precision,
        optimizer=config.train.optimizer,
        micro_batch_size=config.train.micro_batch_size,
    )
    frozen.requires_grad_(False)
    if live.weights:
        live.weights.start_alike(accelerator)
    both: tuple[RewardModel | RewardSet, ...] = (model, frozen)
    for one in both:
        kept = one.float32_parameters if isinstance(one, RewardModel | RewardSet) else ()
        place(one, device, dtype, keep=kept)
    if live.held_out and live.held_out.rows and isinstance(model, RewardModel):
        sha256 = check_pairs(live.held_out, known=out / "checked.json") if accelerator.is_main_process else {}
        live.cache = cache_frozen(
            model, live.held_out, sha256, out / "frozen", accelerator, batch_images=16, workers=config.train.workers
        )
    return live, frozen


def list_models(reward: RewardModel | RewardSet) -> list[RewardModel]:
    """The reward models of a reward; none of one that is not ours."""
    if isinstance(reward, RewardSet):
        return reward.list_models()
    return [reward] if isinstance(reward, RewardModel) else []


def load_learned(model: RewardModel, folder: Path) -> None:
    """Overwrite the trained parameters by a checkpoint's; earlier versions wrote the whole model."""
    if (folder / "model.safetensors").exists():
        learned = dict(load_model(folder).named_parameters())
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        copy_values([parameter for _, parameter in trained], [learned[name] for name, _ in trained])
    else:
        load_changes(model, folder)


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
    return Monitor(
        lq=lq,
        hq=hq,
        seeds=list(range(len(faces))),
        judges=choose_judges(list_optimized(material, config), to_bytes(hq)),
        judges_needed=config.train.hacking_judges,
        batch_size=config.train.rollout_batch_size or math.ceil(config.train.batch_size / accelerator.num_processes),
    )


def list_optimized(material: Material, config: ReflConfig) -> set[str]:
    """Every metric that the loss has a gradient of: none of them may judge what training makes."""
    loss = config.loss
    found: set[str] = set()
    if loss.perceptual_weight:
        found.add(loss.perceptual)
    if loss.identity_weight:
        found.add("identity")
    if loss.reward_weight and isinstance(material.reward, RewardSet):
        found |= material.reward.optimized_metrics
    return found


def check_same(record: dict[str, Any], now: dict[str, Any], config: ReflConfig, folder: Path) -> None:
    """Check that a checkpoint is of this restorer, this reward model, these faces and pairs and this way of training.

    All are told by their content, wherever it lies.

    Args:
        record: its `training.json`.
        now: the same of the training that is to continue it.
    Raises:
        UserError: something that decides the weights differs; named.
    """
    same = {
        "restorer": _is_same_restorer(record, now),
        "reward": _is_same_reward(record, now),
        "faces": record["faces_sha256"] == now["faces_sha256"],
        "dataset": record["dataset_sha256"] == now["dataset_sha256"]
        if "dataset_sha256" in record
        else _is_same_name(record, now, "dataset"),
    }
    for what in (name for name, is_same in same.items() if not is_same):
        was = f"{record['faces']:,} of them" if what == "faces" else record["names"].get(what) or "none"
        raise UserError(
            f"{folder} was trained with another {what} ({was}). Give the same to continue it, or another --out."
        )
    for table in ReflConfig.model_fields:
        check_settings(record["config"].get(table, {}), getattr(config, table), folder)


def _is_same_restorer(record: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether both began with the same restorer. A setting that one of the two versions does not know says nothing.

    Versions that noted no `dataset_sha256` took the checkpoint that they continued for a file of the restorer: in their
    records it is passed over, so that their folders can be continued.
    """
    before, after = deepcopy(record["restorer"]), deepcopy(now["restorer"])
    may_be_checkpoint = "dataset_sha256" not in record or TRAINED_FILE not in after["weights"]
    if may_be_checkpoint and _is_same_name(record, now, "restorer"):
        for settings in (before, after):
            settings["weights"].pop(TRAINED_FILE, None)
    known = (before.keys() & after.keys()) | {"weights"}
    return not known.intersection(name_changes(before, after))


def _is_same_reward(record: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether both began with the same reward model; by its name where one has no version of it."""
    before, after = record.get("reward_base", {}).get("version"), now["reward_base"]["version"]
    return before == after if before and after else _is_same_name(record, now, "reward")


def _is_same_name(record: dict[str, Any], now: dict[str, Any], what: str) -> bool:
    """Whether the same was asked for, by the same words or by another path of the same file."""
    before, after = (one["names"].get(what, "") for one in (record, now))
    return bool(before == after or is_same_file(before, after))


def resume(training: Training, last: Path) -> None:
    """Take over the rest of a checkpoint's state; its weights are loaded already."""
    state = load_state(last)
    training.step = state["step"]
    training.weights.load_state_dict(state["weights"])
    training.live.load_state_dict(state["live"])
    if training.accelerator.is_main_process:
        sums = state["sums"]
        if isinstance(sums, dict):  # as earlier versions had them
            sums = torch.tensor([sums.get(name, 0.0) for name in (*list_terms(training.config), "images")])
        training.sums.copy_(sums)
    if training.monitor and state["monitor"]:
        training.monitor.load_state_dict(state["monitor"])
    log.info("continuing after step %s of %s", training.step, training.config.train.max_steps)
