"""Restore in one call of Stable Diffusion's denoiser, on the latents of the image itself: OSEDiff and its kin.

The image is encoded, its latents are taken for those of a timestep, the noise that the denoiser finds in them is
removed, and what is left is decoded. The kin differ in the timestep, in what the denoiser attends to, and in whether
the latents are noised first, as GDPO-SR does (arXiv:2603.16769), so that seeds give different images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from refl.faces.color_fix import fix_color
from refl.restorers import lora
from refl.restorers.latent import LatentRestorer, LatentSettings, dtype_of
from refl.restorers.surface import check_images, draw_ahead, make_generators


@dataclass(frozen=True)
class OneStepSettings(LatentSettings):
    """Where in the schedule the one step is; the defaults are OSEDiff's."""

    timestep: int = 999
    """At which the denoiser is called."""
    condition_noise_timestep: int = 0
    """To which the image's latents are noised before; 0 for not at all."""


class OneStepRestorer(LatentRestorer):
    """Restore in one step; see `refl.restorers.surface`.

    The one step multiplies the denoiser's errors of rounding by 1 / sqrt(a), at OSEDiff's timestep 14.6, so that
    float16, as published, is to be preferred to bfloat16.
    """

    use: OneStepSettings
    default_steps = 1

    @property
    def is_random(self) -> bool:
        return self.use.condition_noise_timestep > 0

    @property
    def settings(self) -> dict[str, object]:
        """All that the pixels depend on; OSEDiff's timesteps, which methods stored before there were others lack, not.

        So a method that a database has stays the same one.
        """
        first = {one.name: one.default for one in fields(OneStepSettings)[len(fields(LatentSettings)) :]}
        given = {key: value for key, value in asdict(self.use).items() if key not in first or value != first[key]}
        return {"restorer": self.base, **given, "weights": self.weights, **lora.describe(self.trained)}

    def forward(self, lq: Tensor, noise: Tensor | None = None) -> Tensor:
        """Restore without clamping and colour fix, with gradient to the adapters."""
        embedding = self.encode_prompts([self.use.prompt]).expand(len(lq), -1, -1)
        return self.decode(self.restore_latents(lq, embedding, noise))

    def encode_condition(self, lq: Tensor) -> Tensor:
        """Encode the image: (N, 3, H, W) in [0, 1] -> (N, c, h, w) latents, the posterior's mean."""
        return self.encode_pixels(lq)

    def embed(self, lq: Tensor, embedding: Tensor) -> Tensor:
        """Tell what the denoiser attends to: (N, T, C), of the prompt's (N or 1, T, C) here, of `lq` in some kin."""
        return embedding.expand(len(lq), -1, -1)

    def draw_noise(self, lq: Tensor, generators: Sequence[torch.Generator]) -> Tensor | None:
        """Draw what `restore_latents` takes for these images, one generator each; None where no noise is wanted."""
        if not self.is_random:
            return None
        shrink = 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (self.vae.config.latent_channels, lq.shape[2] // shrink, lq.shape[3] // shrink)
        return next(draw_ahead(generators, shape, 1, lq.device))

    def add_noise(self, condition: Tensor, noise: Tensor | None) -> Tensor:
        """Noise the latents of the image to where the settings say: sqrt(a) z + sqrt(1 - a) noise.

        Raises:
            ValueError: noise is wanted and there is none, or there is and none is wanted.
        """
        if (noise is not None) != self.is_random:
            at = self.use.condition_noise_timestep
            raise ValueError(f"the latents are noised to timestep {at}: " + ("give noise" if at else "give no noise"))
        if noise is None:
            return condition
        signal, amount = self.noise_scales(self.use.condition_noise_timestep)
        noised: Tensor = signal * condition + amount * noise
        return noised

    def predict_noise(self, condition: Tensor, embedding: Tensor) -> Tensor:
        """Call the denoiser at its timestep: (N, c, h, w) latents, (N, T, C) -> (N, c, h, w), float32."""
        dtype, timestep = dtype_of(self.unet), self.use.timestep
        output: Tensor = self.unet(condition.to(dtype), timestep, embedding.to(dtype), return_dict=False)[0]
        return output.float()

    def to_x0(self, condition: Tensor, timestep: Tensor | int, output: Tensor) -> Tensor:
        """Convert an output to clean latents."""
        return self.predict_x0(condition, timestep, output)

    def restore_latents(self, lq: Tensor, embedding: Tensor, noise: Tensor | None = None) -> Tensor:
        """Predict clean latents, with gradient to the adapters.

        Args:
            lq: (N, 3, H, W) in [0, 1].
            embedding: (N, T, C) of the prompt.
            noise: (N, c, h, w) normal, for restorers that noise the latents first; see `draw_noise`.
        Returns:
            (N, c, h, w).
        """
        condition = self.add_noise(self.encode_condition(lq), noise)
        output = self.predict_noise(condition, self.embed(lq, embedding))
        return self.to_x0(condition, self.use.timestep, output)

    @torch.no_grad()
    def restore(self, lq: Tensor, seeds: Sequence[int], steps: int | None = None) -> Tensor:
        """See `Restorer.restore`."""
        check_images(lq, seeds, self.multiple_px)
        if steps not in (None, 1):
            raise ValueError(f"{type(self).__name__} takes one step, not {steps}")
        restored = self(lq.float(), self.draw_noise(lq, make_generators(seeds))).clamp(0, 1)
        return fix_color(restored, lq.float(), self.use.color_fix).clamp(0, 1)
