"""Define the three phases of a tiny restorer's training: its trained part, data, loss and measure."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from db.errors import UserError
from refl.pretrain.config import PHASES, PretrainConfig
from refl.pretrain.data import LARGE, Batch, Faces, Images, make_pairs, make_sample, scale_degradation
from refl.pretrain.loss import compute_gmsd, compute_psnr, compute_ssim, pixel_loss
from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.latent import TRAIN_TIMESTEPS
from refl.restorers.tiny_config import TinyConfig
from runs.store import RunStopped
from training.state import find_last, load_state, save_checkpoint

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Told (phase, steps done, steps in all, values)."""
TELL_SECONDS = 30
"""Between progress lines where latents are made."""
ENCODE_FACES = 64
"""Faces that go through the autoencoder at once where latents are made."""


@dataclass
class Training:
    """What the phases share."""

    restorer: DiffusionRestorer
    model: TinyConfig
    config: PretrainConfig
    faces: Faces
    held_out: Faces
    record: dict[str, Any]
    out: Path
    device: torch.device
    progress: Progress
    finished: dict[str, int] = field(default_factory=dict)
    """Steps of the phases before."""
    latents: dict[int, Tensor] = field(default_factory=dict)
    """Of the third phase, by scale: (faces × variants, 2, c, h, w) float16, the face's latent and its condition's."""


@dataclass
class Phase:
    """One phase's trained parts and where they stand."""

    name: str
    parts: list[nn.Module]
    loss: Callable[[Training, Batch | None, int], Tensor]
    steps: int
    learning_rate: float
    step: int = 0

    def __post_init__(self) -> None:
        self.parameters = [parameter for part in self.parts for parameter in part.parameters()]
        self.averages = [parameter.detach().clone() for parameter in self.parameters]


def make_phases(training: Training) -> list[Phase]:
    """The three in order."""
    restorer, config = training.restorer, training.config
    assert restorer.stage1 is not None
    assert restorer.text is not None
    return [
        Phase("stage1", [restorer.stage1], stage1_loss, config.stage1_steps, config.stage1_learning_rate),
        Phase("vae", [restorer.vae], vae_loss, config.vae_steps, config.vae_learning_rate),
        Phase(
            "diffusion",
            [restorer.unet, restorer.control, restorer.text],
            diffusion_loss,
            config.diffusion_steps,
            config.diffusion_learning_rate,
        ),
    ]


def to_pixels(images: Images, device: torch.device) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255


def stage1_loss(training: Training, batch: Batch | None, seed: int) -> Tensor:  # noqa: ARG001
    """The first phase's loss on a batch, ()."""
    assert batch is not None
    hq, lq = to_pixels(batch.hq, training.device), to_pixels(batch.lq, training.device)
    return pixel_loss(training.restorer.clean(lq), hq, training.config)


def vae_loss(training: Training, batch: Batch | None, seed: int) -> Tensor:
    """The second phase's loss on a batch, (): what decoding a drawn latent lacks, and the divergence."""
    assert batch is not None
    hq = to_pixels(batch.hq, training.device)
    posterior = training.restorer.vae.encode(hq * 2 - 1).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    noise = torch.randn(mean.shape, generator=torch.Generator("cpu").manual_seed(seed)).to(mean)
    decoded = training.restorer.vae.decode(mean + torch.exp(logvar / 2) * noise).sample.float() / 2 + 0.5
    divergence = (mean**2 + logvar.exp() - 1 - logvar).mean() / 2
    loss: Tensor = pixel_loss(decoded, hq, training.config) + training.config.kl_weight * divergence
    return loss


def diffusion_loss(training: Training, batch: Batch | None, seed: int) -> Tensor:  # noqa: ARG001
    """The third phase's loss of a step, (): the squared error of the prediction, weighted by the noise's share.

    Source: v-prediction arXiv:2202.00512; weights min(SNR, cap) / (SNR + 1) of it arXiv:2303.09556, section 3.4.
    """
    restorer, config = training.restorer, training.config
    rng = np.random.default_rng([config.seed, PHASES.index("diffusion"), seed])
    scale = LARGE if rng.random() < config.large_share else 1
    n = max(1, config.diffusion_batch_size // scale**2)
    kept = training.latents[scale]
    x0, condition = kept[torch.from_numpy(rng.integers(0, len(kept), n))].to(training.device).float().unbind(1)
    timesteps = torch.from_numpy(rng.integers(0, round(TRAIN_TIMESTEPS * config.trained_fraction), n))
    noise = torch.randn(x0.shape, generator=torch.Generator("cpu").manual_seed(int(rng.integers(2**31))))
    noise, timesteps = noise.to(training.device), timesteps.to(training.device)
    alpha = restorer.alphas.to(training.device)[timesteps]
    signal, share = alpha.sqrt().view(-1, 1, 1, 1), (1 - alpha).sqrt().view(-1, 1, 1, 1)
    noisy = signal * x0 + share * noise
    output = restorer.predict_output(noisy, timesteps, condition, restorer.encode_prompts([""] * n))
    snr = alpha / (1 - alpha)
    capped = snr.clamp_max(config.min_snr)
    if training.model.prediction == "v_prediction":
        target, weight = signal * noise - share * x0, capped / (snr + 1)
    else:
        target, weight = noise, capped / snr
    return (weight * F.mse_loss(output, target, reduction="none").mean(dim=(1, 2, 3))).mean()


def prepare_diffusion(training: Training, stop_asked: Callable[[], int]) -> None:
    """Measure the latents' scale, and make or load the latents that the third phase trains on.

    Raises:
        UserError: the third phase was begun on latents of other first phases.
        RunStopped: a signal came; they are made anew when it is continued.
    """
    folder, config = training.out / "diffusion", training.config
    variants = {"small_variants": config.small_variants, "large_variants": config.large_variants}
    made_of = {**training.finished, **variants}
    if (folder / "latents").exists():
        kept = load_state(folder / "latents")
        if kept["made_of"] == made_of:
            set_scaling_factor(training, kept["scaling_factor"])
            training.latents = {1: kept["small"], LARGE: kept["large"]}
            return
        if find_last(folder):
            raise UserError(
                f"{folder} was trained on latents of {kept['made_of']}, which are now {made_of}. Move this folder away "
                "to train the third phase anew."
            )
    log.info("making latents of %s faces", f"{len(training.faces.images):,}")
    set_scaling_factor(training, 1.0)
    unscaled = {
        scale: make_latents(training, scale, count, stop_asked)
        for scale, count in ((1, config.small_variants), (LARGE, config.large_variants))
    }
    factor = 1 / float(unscaled[1][:, 0].float().std())
    training.latents = {scale: (kept.float() * factor).half() for scale, kept in unscaled.items()}
    set_scaling_factor(training, factor)
    named = {"small": training.latents[1], "large": training.latents[LARGE]}
    state = {"made_of": made_of, "scaling_factor": factor, **named}
    save_checkpoint(folder / "latents", None, training.record, state)


@torch.no_grad()
def make_latents(training: Training, scale: int, variants: int, stop_asked: Callable[[], int]) -> Tensor:
    """(faces × variants, 2, c, h, w) float16: latents of every face, cut anew each time, and of its condition."""
    config, size, restorer = training.config, training.model.image_size_px * scale, training.restorer
    settings = scale_degradation(config, scale)
    places = [(face, variant) for variant in range(variants) for face in range(len(training.faces.images))]
    parts = []
    told = time.monotonic()
    for first in range(0, len(places), ENCODE_FACES):
        if stop := stop_asked():
            raise RunStopped(128 + stop)
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            training.progress(f"latents of {size} px", first, len(places), {})
        pairs = []
        for face, variant in places[first : first + ENCODE_FACES]:
            rng = np.random.default_rng([config.seed, len(PHASES), scale, face, variant])
            pairs.append(make_sample(training.faces.images[face], size, settings, config, rng))
        hq = to_pixels(np.stack([hq for hq, _ in pairs]), training.device)
        lq = to_pixels(np.stack([lq for _, lq in pairs]), training.device)
        with torch.autocast(training.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            both = [restorer.encode_pixels(hq), restorer.encode_condition(lq)]
        parts.append(torch.stack(both, dim=1).half().cpu())
    return torch.cat(parts)


def set_scaling_factor(training: Training, factor: float) -> None:
    """Let the autoencoder's latents be multiplied by this."""
    training.restorer.vae.register_to_config(scaling_factor=factor)
    training.model = training.model.model_copy(update={"scaling_factor": factor})


@torch.no_grad()
def validate(training: Training, phase: Phase) -> dict[str, float]:
    """Means over held-out faces, of what the phase makes of them and of the degraded input."""
    restorer = training.restorer
    chosen = Faces(
        training.held_out.names[: training.config.validate_faces],
        training.held_out.images[: training.config.validate_faces],
    )
    pairs = make_pairs(chosen, training.model.image_size_px, training.config)
    hq, lq = to_pixels(pairs.hq, training.device), to_pixels(pairs.lq, training.device)
    if phase.name == "stage1":
        made = restorer.clean(lq)
    elif phase.name == "vae":
        made = restorer.decode(restorer.encode_pixels(hq))
    else:
        made = restorer.restore(lq, range(len(lq)))
    made = made.clamp(0, 1)
    return {
        f"val/{name}{suffix}": float(measure(image, hq).mean())
        for name, measure in (("psnr", compute_psnr), ("ssim", compute_ssim), ("gmsd", compute_gmsd))
        for suffix, image in (("", made), ("_lq", lq))
    }
