"""Count the memory of a restorer's training by part, before anything is loaded, by running its own code on fakes.

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
from refl.restorers.diffbir import VERSIONS
from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.kin import ONE_STEP
from refl.restorers.latent import TRAIN_TIMESTEPS
from refl.restorers.record import find_base
from refl.restorers.surface import HeldPrompt
from refl.restorers.tiny import SHIPPED, make_tiny, read_tiny_config
from refl.tune.config import ReflConfig
from refl.tune.data import DegradedFaces, Face
from refl.tune.draws import draw_trajectory
from refl.tune.evaluations import Evaluations
from refl.tune.identity import compute_identity_loss
from refl.tune.live_reward import choose_inputs, compute_rewards
from refl.tune.parts import FacePart, PairPart, Part
from refl.tune.perceptual import PerceptualLoss, load_perceptual
from refl.tune.refl import roll_out_parts
from refl.tune.sampling import Plan, Tunable
from refl.tune.setup import NEVER, make_plan, needs_term, place_restorer, place_rewards
from refl.tune.train import restore, train_step
from refl.tune.training import Material, Training, list_sums
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
STEPS = 2
"""Of denoising without gradient: the second needs no more memory than all after it."""


def count_training(
    config: ReflConfig,
    restorer: str,
    reward: ModelConfig | None,
    architecture: dict[str, Any],
    processes: int = 1,
    device: str = "cpu",
    combined: CombinedShape | None = None,
) -> MemoryCount:
    """Count the memory of each process of a training, by phase.

    Phases are `trajectory` of refl, `step`, `reward update` where the reward learns, and `check` where the monitor
    checks. Of grpo the kept latents of two denoising steps are counted: each more needs some MB.

    Args:
        restorer: as `refl train` takes it.
        reward, architecture: of the reward model; None where there is none.
        processes: that share a batch.
        device: "cpu", or "meta", on which host copies are seen as well and optimizers take no step.
        combined: of a reward set, which then stands in place of the one reward model.
    Raises:
        UserError: there is no such restorer, or it cannot be trained so.
    """
    share = math.ceil(config.train.batch_size / processes)
    settings = config.train.model_copy(update={"batch_size": share, "compile": False, "optimizer": "adamw"})
    algorithm = config.algorithm.model_copy(update={"gradient_steps": 0})  # all of the few that are left
    config = config.model_copy(update={"train": settings, "algorithm": algorithm})
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
    reward: ModelConfig | None,
    architecture: dict[str, Any],
    device: str,
    combined: CombinedShape | None = None,
) -> Training:
    """A training as `start` puts it into place, with nothing read."""
    accelerator = make_lone_accelerator(device)
    faces = [Face(str(number), Path(), None) for number in range(config.train.batch_size)]
    with torch.device(device):
        model = build_set(combined) if combined else RewardModel(reward, architecture) if reward else None
        material = Material(build_restorer(restorer), model.eval() if model else None, faces, [])
    # fake tensors have no numbers, and any will do here that fall as noise grows
    material.restorer.alpha_numbers = [1 - number / TRAIN_TIMESTEPS for number in range(1, TRAIN_TIMESTEPS + 1)]
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
        judge=None if model else _Judge(),
        perceptual=make_perceptual(config, device) if needs_term(config, "perceptual") else None,
        identity=make_identity(device) if needs_term(config, "identity") else None,
        faces=faces,
        images=DegradedFaces(faces, 0, config.degradation, 0),
        pairs=None,
        embedding=material.restorer.encode_prompts([""]),
        plan=shorten(make_plan(material.restorer, config), config),
        weights=weights,
        monitor=None,
        held_out=[],
        record={},
        micro_batch_size=min(config.train.micro_batch_size or share, share),
        rollout_batch_size=min(config.train.rollout_batch_size or share, share),
        sums=torch.zeros(len(list_sums(config, live)) + 1, dtype=torch.float64, device=device),
        evaluations=Evaluations(material.restorer.unet),
    )


def build_set(combined: CombinedShape) -> RewardSet:
    """A reward set of models of these sizes, without their numbers."""
    config, shapes = combined
    return RewardSet(config, {what: RewardModel(*shape) for what, shape in shapes.items()})


def shorten(plan: Plan, config: ReflConfig) -> Plan:
    """As many steps as the end of a plan has: one without gradient, then those that may have one.

    Timesteps of a fake schedule are all alike, and a step from one to itself has no noise; these fall.
    """
    last_index = config.trajectory.gradient_window[1] if config.method == "refl" else 0
    count = len(plan[-(last_index + STEPS) :])
    return [(number, number - 1 or -1) for number in range(count, 0, -1)]


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
    if training.frozen_reward is not None:
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
    """Run a trajectory of refl, a step, an update of the reward model and a check, each as a phase of the count."""
    config, device = training.config, training.accelerator.device
    size_px = config.train.image_size_px or training.restorer.image_size_px
    share, size = config.train.batch_size, training.micro_batch_size
    whole = make_part(share, size_px, device)
    if config.method == "refl":
        with count.phase("trajectory"):
            for _ in roll_out_parts(training, [whole], draw_trajectory(training, 0), 0):
                pass
    learns, training.live.config = training.live.config, NEVER
    sizes = [min(size, share - at) for at in range(0, share, size)][:2]  # a third needs no more than the second
    with count.phase("step"):  # with gradient norms
        parts: list[Part]
        if config.method == "dpo":
            parts = [make_pair_part(training, size, size_px) for size in sizes]
        else:
            parts = [make_part(size, size_px, device) for size in sizes]
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
            images = restore(
                training, lq, list(range(batch)), steps=STEPS if training.restorer.default_steps > 1 else None
            )
            if training.frozen_reward is not None:
                model = training.live.model
                compute_rewards(model, images, [None] * batch, choose_inputs(model, lq, lq))


def make_part(count: int, size_px: int, device: torch.device) -> FacePart:
    """A micro-batch of so many faces."""
    hq, lq = torch.zeros(2, count, 3, size_px, size_px, device=device)
    return FacePart(list(range(count)), hq, lq, [None] * count)


def make_pair_part(training: Training, count: int, size_px: int) -> PairPart:
    """A micro-batch of so many labelled pairs."""
    restorer, device = training.restorer, training.accelerator.device
    latents = size_px // 2 ** (len(restorer.vae.config.block_out_channels) - 1)
    images = torch.zeros(count, 2, restorer.vae.config.latent_channels, latents, latents, device=device)
    is_many = isinstance(restorer, DiffusionRestorer)
    photos = images[:, 0] if is_many else torch.zeros(count, 3, size_px, size_px, device=device)
    ones = torch.ones(count, device=device)
    return PairPart(list(range(count)), photos, images, ones, ones)


class _Judge:
    """Stands for a judge without gradient, which has its memory elsewhere."""

    name, version, metrics = "judge", "", ()

    def score(self, images: Tensor, *_: object) -> Tensor:
        return torch.zeros(len(images))


def make_perceptual(config: ReflConfig, device: str) -> PerceptualLoss:
    """The perceptual distance; LPIPS as its backbone, whose file is not here."""
    if config.loss.perceptual == "gmsd":
        return load_perceptual("gmsd", device)
    return _Lpips().to(device).compute


def make_identity(device: str) -> partial[Tensor]:
    """The identity term, its network without the file."""
    return partial(compute_identity_loss, FaceNetwork().to(device).requires_grad_(False))


def build_restorer(asked: str) -> Tunable:
    """The restorer that `load_restorer` gives for this name, without its numbers."""
    kind = asked.partition(":")[0]
    path = Path(asked).expanduser()
    if (base := find_base(asked)) is not None:
        return build_restorer(base)
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
