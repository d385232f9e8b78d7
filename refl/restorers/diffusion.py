"""Restore by latent diffusion with diffusers' parts: stage 1, VAE, ControlNet, denoiser, DDIM.

DiffBIR and the tiny restorer are this class at two sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from refl.faces.color_fix import ColorFix, fix_color
from refl.published.control import ConditionControlNet
from refl.restorers import lora
from refl.restorers.latent import (
    TRAIN_TIMESTEPS,
    LatentRestorer,
    LatentSettings,
    Prediction,
    dtype_of,
    make_schedule,
)
from refl.restorers.record import Kind
from refl.restorers.surface import check_images, draw_ahead, make_generators

OnStep = Callable[[int, Tensor, Tensor, Tensor, float], None]


@dataclass(frozen=True)
class DiffusionSettings(LatentSettings):
    """Settings of the sampling, part of what a restorer's pixels depend on."""

    steps: int = 50
    """Steps of the whole schedule; only those after `start_fraction` are taken."""
    eta: float = 1.0
    """Noise added at each step: 0 for deterministic DDIM, 1 for as much as DDPM."""
    start_fraction: float = 1.0
    """1 starts from noise; below, from the condition's latent, noised to this share of the schedule."""
    prediction: Prediction = "epsilon"
    zero_terminal_snr: bool = False
    color_fix: ColorFix = "wavelet"
    control_scale: float = 1.0


class DiffusionRestorer(LatentRestorer):
    """Restore by denoising latents under a ControlNet that sees the condition; see `refl.restorers.surface`."""

    control: ConditionControlNet
    use: DiffusionSettings
    is_random = True

    def __init__(
        self,
        unet: UNet2DConditionModel,
        control: ConditionControlNet,
        vae: AutoencoderKL,
        use: DiffusionSettings,
        *,
        text: nn.Module | None = None,
        stage1: nn.Module | None = None,
        base: str = "",
        weights: dict[str, str] | None = None,
    ) -> None:
        """Take the parts of a `LatentRestorer`, and `stage1`: pixels to pixels, cleans the lq; None passes it on."""
        schedule = make_schedule(use.prediction, use.zero_terminal_snr)
        super().__init__(unet, vae, text, use, control=control, schedule=schedule, base=base, weights=weights)
        self.stage1 = stage1

    @property
    def default_steps(self) -> int:
        return self.use.steps

    def clean(self, lq: Tensor) -> Tensor:
        """Clean `lq` by stage 1, not clamped; return it as it is without a stage 1."""
        if self.stage1 is None:
            return lq
        cleaned: Tensor = self.stage1(lq.to(dtype_of(self.stage1))).float()
        return cleaned

    def encode_condition(self, lq: Tensor) -> Tensor:
        """Encode stage 1's image: (N, 3, H, W) in [0, 1] -> (N, c, h, w) latents."""
        return self.encode_pixels(self.clean(lq))

    def compute_control(
        self,
        latents: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        embedding: Tensor,
        control: ConditionControlNet | None = None,
    ) -> tuple[Tensor, ...]:
        """Compute the features that the ControlNet adds to the denoiser's: the way down in order, the middle last.

        Args:
            timesteps: () or (N,).
            control: another ControlNet, such as the frozen one that ReFL stays near.
        """
        net = self.control if control is None else control
        dtype = dtype_of(net)
        down, middle = net(
            latents.to(dtype),
            timesteps,
            embedding.to(dtype),
            condition.to(dtype),
            conditioning_scale=self.use.control_scale,
            return_dict=False,
        )
        return (*down, middle)

    def predict_output(
        self,
        latents: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        embedding: Tensor,
        residuals: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Predict the noise, or v with a v-prediction model: (N, c, h, w), float32."""
        if residuals is None:
            residuals = self.compute_control(latents, timesteps, condition, embedding)
        dtype = dtype_of(self.unet)
        sample: Tensor = self.unet(
            latents.to(dtype),
            timesteps,
            embedding.to(dtype),
            down_block_additional_residuals=[residual.to(dtype) for residual in residuals[:-1]],
            mid_block_additional_residual=residuals[-1].to(dtype),
            return_dict=False,
        )[0]
        return sample.float()

    def to_noise(self, latents: Tensor, timesteps: Tensor | int, output: Tensor) -> Tensor:
        """Convert an output to noise: eps = sqrt(a) v + sqrt(1 - a) x. Source: arXiv:2202.00512, appendix D."""
        if self.use.prediction == "epsilon":
            return output
        signal, noise = self.noise_scales(timesteps)
        found: Tensor = signal * output + noise * latents
        return found

    def to_x0(self, latents: Tensor, timesteps: Tensor | int, output: Tensor) -> Tensor:
        """Convert an output to clean latents: x0 = sqrt(a) x - sqrt(1 - a) v; defined at zero SNR too."""
        if self.use.prediction == "epsilon":
            return self.predict_x0(latents, timesteps, output)
        signal, noise = self.noise_scales(timesteps)
        found: Tensor = signal * latents - noise * output
        return found

    def step(
        self,
        latents: Tensor,
        timestep: int,
        previous_timestep: int,
        output: Tensor,
        eta: float = 0.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Take one DDIM step, from `timestep` to `previous_timestep` (below 0 for the schedule's end).

        Args:
            output: (N, c, h, w) what the denoiser gave, noise or v.
            noise: (N, c, h, w) fresh normal noise; needed where eta is above 0.
        Raises:
            ValueError: eta is above 0 and there is no noise.
        Source: arXiv:2010.02502, equations 12 and 16.
        """
        mean, sigma = self.distribute_step(latents, timestep, previous_timestep, output, eta)
        if eta == 0:
            return mean
        if noise is None:
            raise ValueError(f"a step with eta {eta} needs noise")
        return mean + sigma * noise

    def distribute_step(
        self, latents: Tensor, timestep: int, previous_timestep: int, output: Tensor, eta: float
    ) -> tuple[Tensor, float]:
        """The normal distribution that `step` draws from: (N, c, h, w) its mean, and its sigma, 0 without eta."""
        alpha, alpha_previous = self.alpha_numbers[timestep], self.alpha_numbers[max(0, previous_timestep)]
        noise_pred, x0 = self.to_noise(latents, timestep, output), self.to_x0(latents, timestep, output)
        sigma = eta * math.sqrt((1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous))
        direction = math.sqrt(max(0.0, 1 - alpha_previous - sigma**2))
        return math.sqrt(alpha_previous) * x0 + direction * noise_pred, sigma

    def plan_steps(self, steps: int | None = None) -> list[tuple[int, int]]:
        """List the steps that `restore` takes as (timestep, next timestep); the last goes to -1.

        Raises:
            ValueError: a number of steps that the schedule has not.
        """
        steps = self.use.steps if steps is None else steps
        if not 1 <= steps <= TRAIN_TIMESTEPS:
            raise ValueError(f"steps must be 1 to {TRAIN_TIMESTEPS}, got {steps}")
        schedule = make_schedule(self.use.prediction, self.use.zero_terminal_snr)
        schedule.set_timesteps(steps)
        timesteps = [min(int(timestep), TRAIN_TIMESTEPS - 1) for timestep in schedule.timesteps]
        taken = timesteps[-max(1, round(steps * self.use.start_fraction)) :]
        return list(zip(taken, [*taken[1:], -1], strict=True))

    def start(self, condition: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Make the latents from which denoising starts: noise, or the noised condition."""
        if self.use.start_fraction >= 1:
            return noise
        alpha = self.alphas[timestep]
        return alpha.sqrt() * condition + (1 - alpha).sqrt() * noise

    def denoise(
        self,
        latents: Tensor,
        plan: Sequence[tuple[int, int]],
        etas: Sequence[float],
        condition: Tensor,
        embedding: Tensor,
        noises: Iterator[Tensor],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Take these steps of DDIM; nothing is copied between host and device after the first.

        Args:
            plan: (timestep, the one after it) of each step.
            etas: of each step, how much fresh noise it adds.
            noises: (N, c, h, w) on the device, one is taken by each step whose eta is above 0.
            on_step: called with each step's place in the plan, the latents before it and after it, and the mean and
                sigma that they were drawn with.
        """
        at = torch.tensor([timestep for timestep, _ in plan], device=latents.device)
        for place, (step, eta) in enumerate(zip(plan, etas, strict=True)):
            output = self.predict_output(latents, at[place], condition, embedding)
            before = latents
            mean, sigma = self.distribute_step(before, *step, output, eta)
            latents = mean + sigma * next(noises) if eta > 0 else mean
            if on_step:
                on_step(place, before, latents, mean, sigma)
        return latents

    def roll_out(
        self,
        lq: Tensor,
        embedding: Tensor,
        plan: Sequence[tuple[int, int]],
        etas: Sequence[float],
        generators: Sequence[torch.Generator],
        *,
        stop: int | None = None,
        later: int = 0,
        on_step: OnStep | None = None,
        start_generators: Sequence[torch.Generator] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Iterator[Tensor]]:
        """Denoise from the start, to the end of the plan or before the step of the place `stop`.

        Args:
            embedding: (N, T, C) of the prompts.
            generators: one an image; all noise is drawn before the first step.
            later: how many more noises to draw.
            on_step: as of `denoise`.
            start_generators: one an image, of the noise that it starts from, where not of its own.
        Returns:
            stage 1's image, its latents, the denoised latents, and the noises for later.
        """
        plan, etas, first = plan[:stop], etas[:stop], plan[0][0]
        cleaned = self.clean(lq)
        condition = self.encode_pixels(cleaned)
        shape, own = condition.shape[1:], count_noises(etas) + later
        if start_generators is None:
            noises = draw_ahead(generators, shape, 1 + own, lq.device)
            start = next(noises)
        else:
            start = next(draw_ahead(start_generators, shape, 1, lq.device))
            noises = draw_ahead(generators, shape, own, lq.device)
        latents = self.start(condition, start, first)
        latents = self.denoise(latents, plan, etas, condition, embedding, noises, on_step)
        return cleaned, condition, latents, noises

    @torch.no_grad()
    def restore(self, lq: Tensor, seeds: Sequence[int], steps: int | None = None) -> Tensor:
        """See `Restorer.restore`."""
        check_images(lq, seeds, self.multiple_px)
        plan = self.plan_steps(steps)
        embedding = self.encode_prompts([self.use.prompt]).expand(len(lq), -1, -1)
        etas, generators = [self.use.eta] * len(plan), make_generators(seeds)
        cleaned, _, latents, _ = self.roll_out(lq.float(), embedding, plan, etas, generators)
        return fix_color(self.decode(latents), cleaned, self.use.color_fix).clamp(0, 1)

    def set_trainable(self, kind: Kind, rank: int = 16) -> None:
        """Make the whole ControlNet trainable, or adapters of this rank on it and the denoiser; all else is frozen."""
        self.requires_grad_(False)
        if kind == "control":
            self.control.requires_grad_(True)
        else:
            lora.add_lora(self.find_parts(), rank)
        self.trained = lora.Trained(kind, rank if kind == "lora" else 0)


def count_noises(etas: Sequence[float]) -> int:
    """Count the noises that steps of these etas need."""
    return sum(eta > 0 for eta in etas)
