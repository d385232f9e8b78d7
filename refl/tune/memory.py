"""Count the memory of a ReFL training by part, before anything is loaded, by running its own code on fake tensors.

Models are built at the size that the asked restorer and reward model have, without their numbers; a step, an update of
the reward model and a check of held-out faces run as in training, with two steps of denoising instead of all.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import vgg16

from metrics.face_network import FaceNetwork
from refl.published.shapes import STABLE_DIFFUSION, STABLE_DIFFUSION_VAE, make_autoencoder, make_control, make_unet
from refl.restorers import lora
from refl.restorers.diffbir import VERSIONS
from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.kin import ONE_STEP
from refl.restorers.latent import TRAIN_TIMESTEPS
from refl.restorers.one_step import OneStepRestorer
from refl.restorers.surface import HeldPrompt
from refl.restorers.tiny import SHIPPED, make_tiny, read_tiny_config
from refl.tune.config import LiveRewardConfig, ReflConfig
from refl.tune.data import DegradedFaces, Face
from refl.tune.identity import compute_identity_loss
from refl.tune.live_reward import choose_inputs, compute_rewards
from refl.tune.perceptual import PerceptualLoss, load_perceptual
from refl.tune.sampling import Plan
from refl.tune.setup import Material, Training, list_sums, make_plan, place_restorer, place_rewards
from refl.tune.train import Part, draw_trajectory, restore, roll_out_parts, train_step
from reward.model.config import ModelConfig
from reward.model.model import RewardModel
from reward.model.reward_set import CombinedShape, RewardSet
from training.accounting import MemoryCount
from training.precision import TrainedWeights
from training.without_memory import count_fake_training, make_lone_accelerator, make_moments

PROMPT_SHAPE = (1, 77, 1024)
SWINIR_PARAMETERS = 15_790_000
COMPARED_LAYERS = (3, 8, 15, 22, 29)
"""Of VGG16, the last of each block: what LPIPS compares."""
NEVER = LiveRewardConfig(reward_every_steps=0)
STEPS = 2
"""Of denoising without gradient: the second needs no more memory than all after it."""


def count_training(
    config: ReflConfig,
    restorer: str,
    reward: ModelConfig,
    architecture: dict[str, Any],
    processes: int = 1,
    device: str = "cpu",
    combined: CombinedShape | None = None,
) -> MemoryCount:
    """Count the memory of each process of a training, by phase.

    Phases are `trajectory`, `step`, `reward update` where the reward learns, and `check` where the monitor checks.

    Args:
        restorer: as `refl train` takes it.
        reward, architecture: of the reward model.
        processes: that share a batch.
        device: "cpu", or "meta", on which host copies are seen as well and optimizers take no step.
        combined: of a reward set, which then stands in place of the one reward model.
    Raises:
        UserError: there is no such restorer, or it cannot be trained so.
    """
    share = math.ceil(config.train.batch_size / processes)
    settings = config.train.model_copy(update={"batch_size": share, "compile": False, "optimizer": "adamw"})
    config = config.model_copy(update={"train": settings})
    with count_fake_training(device) as count:
        training = build_training(config, restorer, reward, architecture, device, combined)
        name_parts(count, training)
        for weights in list_trained(training) if device == "cpu" else []:
            make_moments(weights)
        run_phases(count, training)
    return count


def build_training(
    config: ReflConfig,
    restorer: str,
    reward: ModelConfig,
    architecture: dict[str, Any],
    device: str,
    combined: CombinedShape | None = None,
) -> Training:
    """A training as `start` puts it into place, with nothing read."""
    accelerator = make_lone_accelerator(device)
    faces = [Face(str(number), Path(), None) for number in range(config.train.batch_size)]
    with torch.device(device):
        model = build_set(combined) if combined else RewardModel(reward, architecture)
        material = Material(build_restorer(restorer), model.eval(), faces, [])
    material.restorer.alpha_numbers = [0.5] * TRAIN_TIMESTEPS  # fake tensors have no numbers, and any will do here
    frozen_control, weights = place_restorer(material.restorer, config, accelerator, None)
    live, frozen_reward = place_rewards(material, config, accelerator, Path(), None)
    share = config.train.batch_size
    return Training(
        accelerator=accelerator,
        config=config,
        restorer=material.restorer,
        frozen_control=frozen_control,
        live=live,
        frozen_reward=frozen_reward,
        perceptual=make_perceptual(config, device) if config.loss.perceptual_weight else None,
        identity=make_identity(device) if config.loss.identity_weight else None,
        faces=faces,
        images=DegradedFaces(faces, 0, config.degradation, 0),
        embedding=material.restorer.encode_prompts([""]),
        plan=shorten(make_plan(material.restorer, config), config.trajectory.gradient_window[1]),
        weights=weights,
        monitor=None,
        held_out=[],
        record={},
        micro_batch_size=min(config.train.micro_batch_size or share, share),
        rollout_batch_size=min(config.train.rollout_batch_size or share, share),
        sums=torch.zeros(len(list_sums(config, live)) + 1, dtype=torch.float64, device=device),
    )


def build_set(combined: CombinedShape) -> RewardSet:
    """A reward set of models of these sizes, without their numbers."""
    config, shapes = combined
    return RewardSet(config, {what: RewardModel(*shape) for what, shape in shapes.items()})


def shorten(plan: Plan, last_index: int) -> Plan:
    """The end of a plan: a step without gradient, then those that may have one."""
    return plan[-(last_index + STEPS) :]


def name_parts(count: MemoryCount, training: Training) -> None:
    """Say what is whose, the reward models' shared weights once."""
    restorer, live = training.restorer, training.live
    for parameter in live.weights.working if live.weights else []:
        parameter.requires_grad_(True)  # so that its gradient gets its name
    for part, module in restorer.named_children():
        count.name({"unet": "denoiser", "control": "ControlNet", "vae": "autoencoder"}.get(part, part), module)
    if training.frozen_control is not None:
        count.name("ControlNet before training", training.frozen_control)
    if isinstance(perceptual := getattr(training.perceptual, "__self__", None), nn.Module):
        count.name("perceptual distance", perceptual)
    if training.identity is not None:
        count.name("face network", training.identity.args[0])
    count.name("reward model before training", training.frozen_reward)
    count.name("reward model", live.model)
    live.rest()
    for name, weights in (("restorer's", training.weights), ("reward's", live.weights)):
        if weights is None:
            continue
        working = {id(parameter) for parameter in weights.working}
        count.name(f"{name} trained weights, float32", [one for one in weights.masters if id(one) not in working])
        count.name(f"{name} average", weights.averages)
        count.name(f"{name} moments", weights.optimizer)


def list_trained(training: Training) -> list[TrainedWeights]:
    """List the trained weights: of the restorer, and of the reward model where it learns."""
    return [weights for weights in (training.weights, training.live.weights) if weights is not None]


def run_phases(count: MemoryCount, training: Training) -> None:
    """Run a trajectory, a step, an update of the reward model and a check, each as a phase of the count."""
    config, device = training.config, training.accelerator.device
    size_px = config.train.image_size_px or training.restorer.image_size_px
    share, size = config.train.batch_size, training.micro_batch_size
    with count.phase("trajectory"):
        whole = make_part(share, size_px, device)
        for _ in roll_out_parts(training, [whole], draw_trajectory(training, 0), 0):
            pass
    learns, training.live.config = training.live.config, NEVER
    with count.phase("step"):  # with gradient norms; a third micro-batch needs no more than the second
        parts = [make_part(min(size, share - at), size_px, device) for at in range(0, share, size)][:2]
        train_step(training, config.train.log_every_steps - 1, iter([parts]))
    training.live.config = learns
    if training.live.weights and device.type == "cpu":
        with count.phase("reward update"):
            seen = choose_inputs(training.live.model, whole.lq, whole.hq)
            training.live.update(0, whole.lq, whole.hq, whole.captions, seen)
    if config.train.monitor_every_steps:
        with count.phase("check"), torch.no_grad():
            batch = min(training.rollout_batch_size, config.train.monitor_faces)
            lq = torch.zeros(batch, 3, size_px, size_px, device=device)
            images = restore(training, lq, list(range(batch)), steps=STEPS if training.restorer.is_random else None)
            compute_rewards(training.live.model, images, [None] * batch, choose_inputs(training.live.model, lq, lq))


def make_part(count: int, size_px: int, device: torch.device) -> Part:
    """A micro-batch of so many images."""
    hq, lq = torch.zeros(2, count, 3, size_px, size_px, device=device)
    return Part(list(range(count)), hq, lq, [None] * count)


def make_perceptual(config: ReflConfig, device: str) -> PerceptualLoss:
    """The perceptual distance; LPIPS as its backbone, whose file is not here."""
    if config.loss.perceptual == "gmsd":
        return load_perceptual("gmsd", device)
    return _Lpips().to(device).compute


def make_identity(device: str) -> partial[Tensor]:
    """The identity term, its network without the file."""
    return partial(compute_identity_loss, FaceNetwork().to(device).requires_grad_(False))


def build_restorer(asked: str) -> DiffusionRestorer | OneStepRestorer:
    """The restorer that `load_restorer` gives for this name, without its numbers."""
    kind = asked.partition(":")[0]
    path = Path(asked).expanduser()
    if (path / "trained.json").is_file():
        return build_restorer(str(lora.read_record(path)["restorer"]))
    if kind not in (*VERSIONS, *ONE_STEP):
        return make_tiny(read_tiny_config(SHIPPED if asked == "tiny" else path))
    unet, vae = make_unet(STABLE_DIFFUSION), make_autoencoder(STABLE_DIFFUSION_VAE)
    prompt = HeldPrompt(torch.zeros(PROMPT_SHAPE))
    if kind in ONE_STEP:
        return ONE_STEP[kind].build(unet, vae, prompt)
    return DiffusionRestorer(
        unet, make_control(STABLE_DIFFUSION, 8), vae, VERSIONS[kind].use, text=prompt, stage1=_Stage1(), base=kind
    )


class _Stage1(nn.Module):
    """Stands for SwinIR, whose memory is its weights: at 512 px it computes at 64."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(SWINIR_PARAMETERS))

    def forward(self, images: Tensor) -> Tensor:
        return images.clone()


class _Lpips(nn.Module):
    """Stands for LPIPS: VGG16's convolutions, whose activations are its memory; five layers are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.features = vgg16(weights=None).features[:30].requires_grad_(False)

    def compute(self, restored: Tensor, hq: Tensor) -> Tensor:
        distance, images = torch.zeros(len(restored), device=restored.device), (restored, hq)
        for at, layer in enumerate(self.features):
            images = tuple(layer(image) for image in images)
            if at in COMPARED_LAYERS:
                distance = distance + (images[0] - images[1]).square().mean(dim=(1, 2, 3))
        return distance
