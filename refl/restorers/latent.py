"""Hold what restorers on the latents of Stable Diffusion's autoencoder share: DiffBIR, the tiny one, OSEDiff.

Pixels are (N, 3, H, W) RGB in [0, 1], latents (N, c, h, w) times the autoencoder's scaling factor; both are float32 at
the borders, whatever the parts compute in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from refl.faces.color_fix import ColorFix
from refl.published.control import ConditionControlNet
from refl.restorers import lora
from refl.restorers.record import Kind
from refl.restorers.surface import HeldPrompt

Prediction = Literal["epsilon", "v_prediction"]
TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class LatentSettings:
    """How a restorer is used; part of what its pixels depend on."""

    image_size_px: int = 512
    prompt: str = ""
    color_fix: ColorFix = "none"


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


class LatentRestorer(nn.Module):
    """The parts and what is done with them outside of `restore`; see `refl.restorers.surface`."""

    adapted: tuple[str, ...] = ("unet", "control")
    """The parts that training by LoRA puts adapters on."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text: nn.Module | None,
        use: LatentSettings,
        *,
        control: ConditionControlNet | None = None,
        schedule: DDIMScheduler | None = None,
        base: str = "",
        weights: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            text: a callable, prompts -> (N, T, C).
            schedule: Stable Diffusion's own where not given.
            base: the name under which `load_restorer` makes it again.
            weights: file name -> SHA-256 of what the parts were loaded from.
        """
        super().__init__()
        self.unet, self.control, self.vae, self.text = unet, control, vae, text  # trained in this order
        self.use = use
        self.base = base
        self.weights = dict(weights or {})
        self.trained: lora.Trained | None = None
        # no buffer, so that it stays float32 where the parts do not
        self.alphas: Tensor = (schedule or make_schedule("epsilon", False)).alphas_cumprod
        self.alpha_numbers: list[float] = self.alphas.tolist()

    @property
    def image_size_px(self) -> int:
        return self.use.image_size_px

    @property
    def multiple_px(self) -> int:
        levels = len(self.vae.config.block_out_channels) - 1 + len(self.unet.config.block_out_channels) - 1
        return int(2**levels)

    @property
    def settings(self) -> dict[str, object]:
        return {"restorer": self.base, **asdict(self.use), "weights": self.weights, **lora.describe(self.trained)}

    def encode_pixels(self, pixels: Tensor, vae: AutoencoderKL | None = None) -> Tensor:
        """The latents of pixels in [0, 1]: the posterior's mean, scaled; by another autoencoder where one is given."""
        vae = vae or self.vae
        posterior = vae.encode((pixels * 2 - 1).to(dtype_of(vae))).latent_dist
        latents: Tensor = posterior.mean * vae.config.scaling_factor
        return latents.float()

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """(N, T, C), float32.

        Raises:
            ValueError: the restorer was made without a text encoder.
        """
        if self.text is None:
            raise ValueError("this restorer has no text encoder")
        embedding: Tensor = self.text(prompts)
        return embedding.float()

    def predict_x0(self, latents: Tensor, timesteps: Tensor | int, noise_pred: Tensor) -> Tensor:
        """The clean latents if `noise_pred` is the noise: (x - sqrt(1 - a) eps) / sqrt(a).

        At zero SNR (the last timestep of a rescaled schedule) noise says nothing of x0; v does.
        """
        signal, noise = self.noise_scales(timesteps)
        found: Tensor = (latents - noise * noise_pred) / signal
        return found

    def noise_scales(self, timesteps: Tensor | int) -> tuple[Any, Any]:
        """sqrt(a) and sqrt(1 - a): numbers of one timestep, tensors shaped to multiply latents of (N,) timesteps.

        Numbers go into a kernel as they are; a tensor of the schedule would be copied to the device.
        """
        if isinstance(timesteps, int):
            number = self.alpha_numbers[timesteps]
            return math.sqrt(number), math.sqrt(1 - number)
        alpha = self.alphas.to(timesteps.device)[timesteps].reshape(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def decode(self, latents: Tensor) -> Tensor:
        """(N, c, h, w) -> (N, 3, H, W), about [0, 1], not clamped, so that gradients pass."""
        scaled = (latents / self.vae.config.scaling_factor).to(dtype_of(self.vae))
        image: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return image.float() / 2 + 0.5

    def set_trainable(self, kind: Kind, rank: int) -> None:
        """Let parts be trained whole or by adapters of this rank; all else rests."""
        raise NotImplementedError

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What an optimizer takes, in a fixed order."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def save_trained(self, folder: Path, values: Mapping[nn.Parameter, Tensor] | None = None) -> None:
        """Write what was trained and no more; `load_trained` or `load_restorer` takes the folder.

        Args:
            values: of the parameters, where they are kept elsewhere; the parameters themselves where not given.
        """
        parts = self.find_parts(self.trained.kind if self.trained else "lora")
        lora.save_trained(folder, self.trained, parts, self.settings, values)

    def load_trained(self, folder: Path) -> None:
        """Take what `save_trained` wrote from a restorer of this base."""
        read = lora.read_trained(folder, self.settings)
        if self.trained != read.trained:
            self.set_trainable(read.trained.kind, read.trained.rank)
        lora.load_trained(read, self.find_parts(read.trained.kind))
        self.weights = {**self.weights, read.path.name: read.sha256}  # settings that were given away stay

    def set_lora_strength(self, strength: float) -> None:
        """How much the trained adapters count: 0 not at all, 1 as trained."""
        self.trained = lora.set_strength(self.find_parts(), self.trained, strength)

    def without_adapters(self) -> AbstractContextManager[None]:
        """The block computes as before training."""
        return lora.without_adapters(self.find_parts())

    def find_parts(self, kind: Kind = "lora") -> dict[str, nn.Module]:
        """The parts that training of this kind changes, by name."""
        return {name: self.get_submodule(name) for name in (self.adapted if kind == "lora" else ("control",))}

    def hold_prompt(self) -> None:
        """Encode the prompt once and let the text encoder go, which nothing else needs."""
        with torch.no_grad():
            self.text = HeldPrompt(self.encode_prompts([self.use.prompt]))

    def enable_small_memory(self) -> None:
        """Decode and encode by tiles, and attend by slices: slower, and little memory for large images."""
        self.vae.enable_tiling()
        for part in (self.unet, self.control):
            if part is not None:
                part.set_attention_slice("auto")


def dtype_of(module: nn.Module) -> torch.dtype:
    """What a part computes in; float32 for one without parameters."""
    parameter: Any = next(module.parameters(), None)
    return torch.float32 if parameter is None else parameter.dtype
