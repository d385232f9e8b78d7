"""Restore by latent diffusion with diffusers' parts: stage 1, VAE, ControlNet, denoiser, DDIM.

DiffBIR and the tiny restorer are this class at two sizes. Pixels are (N, 3, H, W) RGB in [0, 1], latents (N, c, h, w)
times the VAE's scaling factor; both are float32 at the borders, whatever the parts compute in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from refl.faces.color_fix import ColorFix, fix_color
from refl.published.control import ConditionControlNet
from refl.restorers import lora
from refl.restorers.surface import HeldPrompt, check_images, draw_ahead, make_generators

Prediction = Literal["epsilon", "v_prediction"]
TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class DiffusionSettings:
    """How a diffusion restorer is used; part of what its pixels depend on."""

    image_size_px: int = 512
    steps: int = 50
    """Steps of the whole schedule; those after `start_fraction` are taken."""
    eta: float = 1.0
    """Noise added at each step: 0 for deterministic DDIM, 1 for as much as DDPM."""
    start_fraction: float = 1.0
    """1 starts from noise; below, from the condition's latent, noised to this share of the schedule."""
    prediction: Prediction = "epsilon"
    zero_terminal_snr: bool = False
    color_fix: ColorFix = "wavelet"
    control_scale: float = 1.0
    prompt: str = ""


def make_schedule(prediction: Prediction, zero_terminal_snr: bool) -> DDIMScheduler:
    """Stable Diffusion's schedule as DiffBIR samples it; with zero terminal SNR rescaled, and from the last timestep.

    Source: CompVis/stable-diffusion's DDIM in diffusers' terms; arXiv:2305.08891, sections 3.1 and 3.4.
    """
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing" if zero_terminal_snr else "leading",
        rescale_betas_zero_snr=zero_terminal_snr,
        prediction_type=prediction,
    )


class DiffusionRestorer(nn.Module):
    """Restores by denoising latents under a ControlNet that sees the condition; see `refl.restorers.surface`."""

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
        """
        Args:
            text: a callable, prompts -> (N, T, C).
            stage1: pixels to pixels, removes what hides the face; None passes the lq on.
            base: the name under which `load_restorer` makes it again.
            weights: file name -> SHA-256 of what the parts were loaded from.
        """
        super().__init__()
        self.unet, self.control, self.vae, self.text, self.stage1 = unet, control, vae, text, stage1
        self.use = use
        self.base = base
        self.weights = dict(weights or {})
        self.trained: lora.Trained | None = None
        # no buffer, so that it stays float32 where the parts do not
        self.alphas: Tensor = make_schedule(use.prediction, use.zero_terminal_snr).alphas_cumprod
        self.alpha_numbers: list[float] = self.alphas.tolist()

    @property
    def image_size_px(self) -> int:
        return self.use.image_size_px

    @property
    def multiple_px(self) -> int:
        levels = len(self.vae.config.block_out_channels) - 1 + len(self.unet.config.block_out_channels) - 1
        return int(2**levels)

    @property
    def default_steps(self) -> int:
        return self.use.steps

    @property
    def is_random(self) -> bool:
        return True

    @property
    def settings(self) -> dict[str, object]:
        return {"restorer": self.base, **asdict(self.use), "weights": self.weights, **lora.describe(self.trained)}

    def clean(self, lq: Tensor) -> Tensor:
        """Stage 1's image, not clamped; `lq` itself without a stage 1."""
        if self.stage1 is None:
            return lq
        cleaned: Tensor = self.stage1(lq.to(dtype_of(self.stage1))).float()
        return cleaned

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """The latents of pixels in [0, 1]: the posterior's mean, scaled."""
        posterior = self.vae.encode((pixels * 2 - 1).to(dtype_of(self.vae))).latent_dist
        latents: Tensor = posterior.mean * self.vae.config.scaling_factor
        return latents.float()

    def encode_condition(self, lq: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, c, h, w): the latents of stage 1's image."""
        return self.encode_pixels(self.clean(lq))

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """(N, T, C), float32.

        Raises:
            ValueError: the restorer was made without a text encoder.
        """
        if self.text is None:
            raise ValueError("this restorer has no text encoder")
        embedding: Tensor = self.text(prompts)
        return embedding.float()

    def compute_control(
        self,
        latents: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        embedding: Tensor,
        control: ConditionControlNet | None = None,
    ) -> tuple[Tensor, ...]:
        """What the ControlNet adds to the denoiser's features: the way down in order, the middle last.

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
        """What the denoiser itself gives: the noise, or v for a v-prediction model; (N, c, h, w), float32."""
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

    def predict_noise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        embedding: Tensor,
        residuals: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The noise in the latents, (N, c, h, w); a v-prediction is converted."""
        output = self.predict_output(latents, timesteps, condition, embedding, residuals)
        return self.to_noise(latents, timesteps, output)

    def to_noise(self, latents: Tensor, timesteps: Tensor | int, output: Tensor) -> Tensor:
        """The noise of a denoiser's output: eps = sqrt(a) v + sqrt(1 - a) x. Source: arXiv:2202.00512, appendix D."""
        if self.use.prediction == "epsilon":
            return output
        signal, noise = self.noise_scales(timesteps)
        found: Tensor = signal * output + noise * latents
        return found

    def to_x0(self, latents: Tensor, timesteps: Tensor | int, output: Tensor) -> Tensor:
        """The clean latents of a denoiser's output: x0 = sqrt(a) x - sqrt(1 - a) v; defined at zero SNR too."""
        if self.use.prediction == "epsilon":
            return self.predict_x0(latents, timesteps, output)
        signal, noise = self.noise_scales(timesteps)
        found: Tensor = signal * latents - noise * output
        return found

    def predict_x0(self, latents: Tensor, timesteps: Tensor | int, noise_pred: Tensor) -> Tensor:
        """The clean latents if `noise_pred` is the noise: (x - sqrt(1 - a) eps) / sqrt(a).

        At zero SNR (the last timestep of a rescaled schedule) noise says nothing of x0; `to_x0` does.
        """
        signal, noise = self.noise_scales(timesteps)
        found: Tensor = (latents - noise * noise_pred) / signal
        return found

    def step(
        self,
        latents: Tensor,
        timestep: int,
        previous_timestep: int,
        noise_pred: Tensor,
        eta: float = 0.0,
        noise: Tensor | None = None,
        x0: Tensor | None = None,
    ) -> Tensor:
        """One DDIM step, from `timestep` to `previous_timestep` (below 0 for the schedule's end).

        Args:
            noise: (N, c, h, w) fresh normal noise; needed where eta is above 0.
            x0: the clean latents, where they are known otherwise than by `predict_x0`.
        Raises:
            ValueError: eta is above 0 and there is no noise.
        Source: arXiv:2010.02502, equations 12 and 16.
        """
        alpha, alpha_previous = self.alpha_numbers[timestep], self.alpha_numbers[max(0, previous_timestep)]
        if x0 is None:
            x0 = self.predict_x0(latents, timestep, noise_pred)
        sigma = eta * math.sqrt((1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous))
        direction = math.sqrt(max(0.0, 1 - alpha_previous - sigma**2))
        following = math.sqrt(alpha_previous) * x0 + direction * noise_pred
        if eta == 0:
            return following
        if noise is None:
            raise ValueError(f"a step with eta {eta} needs noise")
        return following + sigma * noise

    def plan_steps(self, steps: int | None = None) -> list[tuple[int, int]]:
        """(timestep, the one after it) of every step that `restore` takes, the last to -1.

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
        """The latents from which denoising starts: noise, or the noised condition."""
        if self.use.start_fraction >= 1:
            return noise
        alpha = self.alphas[timestep]
        return alpha.sqrt() * condition + (1 - alpha).sqrt() * noise

    def decode(self, latents: Tensor) -> Tensor:
        """(N, c, h, w) -> (N, 3, H, W), about [0, 1], not clamped, so that gradients pass."""
        scaled = (latents / self.vae.config.scaling_factor).to(dtype_of(self.vae))
        image: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return image.float() / 2 + 0.5

    def denoise(
        self,
        latents: Tensor,
        plan: Sequence[tuple[int, int]],
        etas: Sequence[float],
        condition: Tensor,
        embedding: Tensor,
        noises: Iterator[Tensor],
    ) -> Tensor:
        """Take these steps of DDIM; nothing is copied between host and device after the first.

        Args:
            plan: (timestep, the one after it) of each step.
            etas: of each step, how much fresh noise it adds.
            noises: (N, c, h, w) on the device, one is taken by each step whose eta is above 0.
        """
        at = torch.tensor([timestep for timestep, _ in plan], device=latents.device)
        for place, (step, eta) in enumerate(zip(plan, etas, strict=True)):
            output = self.predict_output(latents, at[place], condition, embedding)
            latents = self.apply_output(latents, step, output, eta, noises)
        return latents

    def apply_output(
        self, latents: Tensor, step: tuple[int, int], output: Tensor, eta: float, noises: Iterator[Tensor]
    ) -> Tensor:
        """The DDIM step of what the denoiser gave, noise or v; takes a noise where eta is above 0."""
        noise_pred, x0 = self.to_noise(latents, step[0], output), self.to_x0(latents, step[0], output)
        return self.step(latents, *step, noise_pred, eta, next(noises) if eta > 0 else None, x0)

    @torch.no_grad()
    def restore(self, lq: Tensor, seeds: Sequence[int], steps: int | None = None) -> Tensor:
        """See `Restorer.restore`."""
        check_images(lq, seeds, self.multiple_px)
        plan = self.plan_steps(steps)
        etas = [self.use.eta] * len(plan)
        cleaned = self.clean(lq.float())
        condition = self.encode_pixels(cleaned)
        embedding = self.encode_prompts([self.use.prompt]).expand(len(lq), -1, -1)
        noises = draw_ahead(make_generators(seeds), condition.shape[1:], 1 + count_noises(etas), lq.device)
        latents = self.start(condition, next(noises), plan[0][0])
        latents = self.denoise(latents, plan, etas, condition, embedding, noises)
        return fix_color(self.decode(latents), cleaned, self.use.color_fix).clamp(0, 1)

    def set_trainable(self, kind: lora.Kind, rank: int = 16) -> None:
        """Make the whole ControlNet trainable, or adapters of this rank on it and the denoiser; all else rests."""
        self.requires_grad_(False)
        if kind == "control":
            self.control.requires_grad_(True)
        else:
            lora.add_lora(self._lora_parts(), rank)
        self.trained = lora.Trained(kind, rank if kind == "lora" else 0)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What an optimizer takes, in a fixed order."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def save_trained(self, folder: Path, values: Mapping[nn.Parameter, Tensor] | None = None) -> None:
        """Write what was trained and no more; `load_trained` or `load_restorer` takes the folder.

        Args:
            values: of the parameters, where they are kept elsewhere; the parameters themselves where not given.
        """
        lora.save_trained(folder, self.trained, self._trained_parts(), self.settings, values)

    def load_trained(self, folder: Path) -> None:
        """Take what `save_trained` wrote from a restorer of this base."""
        read = lora.read_trained(folder, self.settings)
        if self.trained != read.trained:
            self.set_trainable(read.trained.kind, read.trained.rank)
        lora.load_trained(read, self._trained_parts())
        self.weights = {**self.weights, read.path.name: read.sha256}  # settings that were given away stay

    def set_lora_strength(self, strength: float) -> None:
        """How much the adapters count: 0 not at all, 1 as trained."""
        self.trained = lora.set_strength(self._lora_parts(), self.trained, strength)

    def without_adapters(self) -> AbstractContextManager[None]:
        """The block computes as before training."""
        return lora.without_adapters(self._lora_parts())

    def hold_prompt(self) -> None:
        """Encode the prompt once and let the text encoder go, which nothing else needs."""
        with torch.no_grad():
            self.text = HeldPrompt(self.encode_prompts([self.use.prompt]))

    def enable_small_memory(self) -> None:
        """Decode and encode by tiles, and attend by slices: slower, and little memory for large images."""
        self.vae.enable_tiling()
        self.unet.set_attention_slice("auto")
        self.control.set_attention_slice("auto")

    def _lora_parts(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "control": self.control}

    def _trained_parts(self) -> dict[str, nn.Module]:
        return self._lora_parts() if self.trained and self.trained.kind == "lora" else {"control": self.control}

    def noise_scales(self, timesteps: Tensor | int) -> tuple[Any, Any]:
        """sqrt(a) and sqrt(1 - a): numbers of one timestep, tensors shaped to multiply latents of (N,) timesteps.

        Numbers go into a kernel as they are; a tensor of the schedule would be copied to the device.
        """
        if isinstance(timesteps, int):
            number = self.alpha_numbers[timesteps]
            return math.sqrt(number), math.sqrt(1 - number)
        alpha = self.alphas.to(timesteps.device)[timesteps].reshape(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()


def count_noises(etas: Sequence[float]) -> int:
    """How many noises steps of these etas take."""
    return sum(eta > 0 for eta in etas)


def dtype_of(module: nn.Module) -> torch.dtype:
    """What a part computes in; float32 for one without parameters."""
    parameter: Any = next(module.parameters(), None)
    return torch.float32 if parameter is None else parameter.dtype
