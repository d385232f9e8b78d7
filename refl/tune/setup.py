"""Set up what ReFL works with: restorer, reward models, faces, optimizer, monitor; or resume it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch._dynamo.config
import torch._functorch.config
from accelerate import Accelerator
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

from db.errors import UserError
from refl.published.control import ConditionControlNet
from refl.restorers.one_step import OneStepRestorer
from refl.tune.config import SAMPLING, LiveRewardConfig, ReflConfig
from refl.tune.data import DegradedFaces, Face, check_faces, stack
from refl.tune.evaluations import Evaluations
from refl.tune.identity import load_identity
from refl.tune.live_reward import LiveReward, NoReward, copy_for_learning
from refl.tune.monitor import Monitor, choose_judges, to_bytes
from refl.tune.pairs import choose_pairs, read_latent_pairs
from refl.tune.perceptual import load_perceptual
from refl.tune.same import check_same, describe
from refl.tune.sampling import Plan, Tunable
from refl.tune.training import Material, Training, list_sums, list_terms
from reward.data import check_pairs
from reward.model.captions import check_captions, describe_long_captions
from reward.model.checkpoint import load_changes, load_model
from reward.model.model import RewardModel, unlock
from reward.model.reward_set import RewardSet
from reward.model.set_config import RewardConfig, SetConfig
from reward.train.frozen_cache import cache_frozen
from training.precision import DTYPES, TrainedWeights, copy_values, place
from training.processes import make_accelerator
from training.state import find_checkpoint, load_state

log = logging.getLogger(__name__)

MONITOR_DRAW = 2**40
"""The draw of the held-out faces' degradation, which no training step has."""
MAX_COMPILED = 128
"""Forms of one block that torch.compile may make; it gives up after eight otherwise."""
REWARD_FOLDER = "reward"
"""Of a checkpoint: what the live reward model has learned."""
NEVER = LiveRewardConfig(reward_every_steps=0)


def start(material: Material, config: ReflConfig, out: Path) -> Training:
    """Everything in place for the first step, or for the one after the last checkpoint's.

    Raises:
        UserError: see `refl.tune.train.train`.
    """
    accelerator = make_accelerator(config.train.mixed_precision, config.train.tracker, out)
    check_material(material, config)
    pairs = choose_pairs(material.pairs, config.algorithm) if config.method == "dpo" and material.pairs else None
    record = describe(material, config)
    last = find_checkpoint(accelerator, out, lambda found, folder: check_same(found, record, config, folder))
    if accelerator.is_local_main_process:
        check_faces([*material.faces, *material.held_out], known=out / "checked.json")
    restorer, device = material.restorer, accelerator.device
    size_px = choose_size(restorer, config)
    plan = make_plan(restorer, config)
    frozen_control, weights = place_restorer(restorer, config, accelerator, last)
    live, frozen_reward = place_rewards(material, config, accelerator, out, last)
    share = math.ceil(config.train.batch_size / accelerator.num_processes)
    images: Dataset[tuple[Tensor, Tensor]]
    if pairs:
        if material.target_vae is not None:
            place(material.target_vae, device, DTYPES[config.train.mixed_precision])
        images = read_latent_pairs(
            pairs, restorer, record["restorer"], material.target_vae, config, size_px, out, accelerator
        )
    else:
        images = DegradedFaces(material.faces, size_px, config.degradation, config.train.seed)
    training = Training(
        accelerator=accelerator,
        config=config,
        restorer=restorer,
        frozen_control=frozen_control,
        live=live,
        frozen_reward=frozen_reward,
        judge=material.judge,
        perceptual=load_perceptual(config.loss.perceptual, device) if needs_term(config, "perceptual") else None,
        identity=load_identity(device) if needs_term(config, "identity") else None,
        faces=material.faces,
        images=images,
        pairs=pairs,
        embedding=restorer.encode_prompts([restorer.use.prompt]),
        plan=plan,
        weights=weights,
        monitor=make_monitor(material, config, size_px, accelerator),
        held_out=material.held_out[: config.train.monitor_faces],
        record=record,
        micro_batch_size=min(config.train.micro_batch_size or share, share),
        rollout_batch_size=min(config.train.rollout_batch_size or share, share),
        sums=torch.zeros(len(list_sums(config, live)) + 1, dtype=torch.float64, device=device),
        evaluations=Evaluations(restorer.unet),
    )
    if last:
        resume(training, last)
    return training


def needs_term(config: ReflConfig, name: str) -> bool:
    """Whether training computes this term of the loss."""
    return config.method == "refl" and name in list_terms(config)


def check_material(material: Material, config: ReflConfig) -> None:
    """Check that there is something to train on, and captions for a reward model that compares faces with them.

    Raises:
        UserError: something is missing.
    """
    if config.method == "dpo":
        if material.pairs is None:
            raise UserError("Algorithm dpo learns from labelled pairs; give --dataset.")
        return
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
    restorer: Tunable, config: ReflConfig, accelerator: Accelerator, last: Path | None
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
    if config.has_reference and train.trainable == "control" and restorer.control is not None:
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


def choose_size(restorer: Tunable, config: ReflConfig) -> int:
    """The side of the faces.

    Raises:
        UserError: the restorer cannot take it.
    """
    size_px = config.train.image_size_px or restorer.image_size_px
    if size_px % restorer.multiple_px:
        raise UserError(f"image_size_px is {size_px}, not a multiple of {restorer.multiple_px}; choose one.")
    return size_px


def make_plan(restorer: Tunable, config: ReflConfig) -> Plan:
    """The steps of a trajectory, of the part of the schedule that the config says.

    Raises:
        UserError: fewer steps are left than the gradient's window reaches back.
    """
    trajectory = config.trajectory
    if isinstance(restorer, OneStepRestorer):
        if config.method == "grpo":
            raise UserError(
                "Algorithm grpo makes the sampler's noisy steps more or less probable, and this restorer takes one "
                "step without noise. Take gdpo, or a restorer of many steps."
            )
        if config.method == "gdpo" and not config.algorithm.group_noise and not restorer.is_random:
            raise UserError(
                "This restorer draws no noise, so that all images of a group would be alike. Set group_noise to 250."
            )
        if config.method != "refl":
            return [(restorer.use.timestep, -1)]
        if trajectory.gradient_window != (0, 0) or trajectory.renoise:
            raise UserError("This restorer takes one step: set gradient_window to 0 0 and renoise to 0.")
        return [(restorer.use.timestep, -1)]
    if trajectory.start_fraction:
        restorer.use = replace(restorer.use, start_fraction=trajectory.start_fraction)
    plan = restorer.plan_steps(trajectory.steps)
    if config.method == "grpo" and config.algorithm.gradient_steps > len(plan):
        raise UserError(
            f"gradient_steps is {config.algorithm.gradient_steps}, but only {len(plan)} denoising steps are taken. "
            "Lower it, or set it to 0 for all."
        )
    if config.method == "refl" and trajectory.gradient_window[1] >= len(plan):
        raise UserError(
            f"gradient_window ends at {trajectory.gradient_window[1]}, but of {trajectory.steps} steps only "
            f"{len(plan)} are taken from where the restorer starts. Lower it, or raise steps or start_fraction."
        )
    return plan


def place_rewards(
    material: Material, config: ReflConfig, accelerator: Accelerator, out: Path, last: Path | None
) -> tuple[LiveReward, RewardModel | RewardSet | None]:
    """The reward model that goes on learning, and the one that training began with, which share what neither trains.

    Where nothing is rewarded by a model, one that gives no reward, and None.
    """
    if material.reward is None:
        return LiveReward(cast(RewardModel, NoReward()), NEVER, accelerator), None
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
    """Every metric that training optimises: none of them may judge what it makes."""
    loss = config.loss
    found: set[str] = set(material.judge.metrics) if material.judge else set()
    if config.method != "refl":
        if config.method in SAMPLING and isinstance(material.reward, RewardSet):
            found |= material.reward.optimized_metrics
        return found
    if loss.perceptual_weight:
        found.add(loss.perceptual)
    if loss.identity_weight:
        found.add("identity")
    if loss.reward_weight and isinstance(material.reward, RewardSet):
        found |= material.reward.optimized_metrics
    return found


def resume(training: Training, last: Path) -> None:
    """Take over the rest of a checkpoint's state; its weights are loaded already."""
    state = load_state(last)
    training.step = state["step"]
    training.evaluations.total = state.get("evaluations", 0)  # earlier versions did not count
    training.seconds = state.get("seconds", 0.0)
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
