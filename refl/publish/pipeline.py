"""Restore faces by a published restorer with diffusers alone, as FaceReward restores them.

This file lies in the folder of every published restorer, so it imports nothing of FaceReward:

    pipe = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
    restored = pipe(image=face, seed=0).images[0]

Images of tensors are (N, 3, H, W) RGB in [0, 1], latents (N, c, h, w) times the autoencoder's scaling factor; both are
float32, whatever the parts compute in. It needs torch, diffusers, numpy, Pillow; and
spandrel where stage 1 is a SwinIR.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

ColorFix = Literal["wavelet", "adain", "none"]
Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB."""
WAVELET_LEVELS = 5
VARIANCE_FLOOR = 1e-5
ALIGNMENT_BYTES = 64
MAX_GREY_SPREAD = 3
"""Of 255, between the channels of any pixel of a photo without colour: JPEG leaves as much."""


class FixedPrompt(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Hold the embedding of the one prompt with which the restorer was tuned."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(tokens, channels), requires_grad=False)

    def forward(self, count: int) -> Tensor:
        """(count, tokens, channels)."""
        return self.embedding.expand(count, -1, -1)


class SwinIRStage(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """DiffBIR's stage 1, with the network that spandrel has: pixels to pixels, sides multiples of 64."""

    _keep_in_fp32_modules = ("net",)  # it makes float32 masks at sizes that it was not made for

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, arguments: dict[str, Any]) -> None:
        # by name, as diffusers loads every package that a line of imports in this file names
        module = importlib.import_module("spandrel.architectures.SwinIR")

        super().__init__()
        self.net = module.SwinIR(**arguments)

    def forward(self, lq: Tensor) -> Tensor:
        cleaned: Tensor = self.net(lq)
        return cleaned


class FaceRestorationPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Restore square aligned faces by DDIM under a ControlNet that sees the condition, or in one step."""

    _optional_components = ("controlnet", "stage1")

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
        prompt: nn.Module,
        controlnet: ControlNetModel | None = None,
        stage1: nn.Module | None = None,
        kind: str = "diffusion",
        image_size_px: int = 512,
        steps: int = 50,
        eta: float = 1.0,
        start_fraction: float = 1.0,
        control_scale: float = 1.0,
        timestep: int = 999,
        condition_noise_timestep: int = 0,
        finds: str = "noise",
        color_fix: str = "wavelet",
    ) -> None:
        """
        Args:
            prompt: number of images -> embeddings (N, T, C).
            controlnet: takes the noisy latents and the condition's, one behind the other in the channels.
            stage1: cleans the photo before it is encoded: a UNet2DModel at half the size, or pixels to pixels.
            kind: `diffusion` or `one_step`.
            image_size_px: side of the squares that the restorer works on.
            steps: of the whole schedule, of which the last `start_fraction` is taken; one-step restorers have none.
            timestep: for which a one-step restorer takes the photo's latents.
            condition_noise_timestep: to which it noises them before; 0 for not at all.
            finds: what its denoiser gives: `noise`, or the `residual` that is to be taken off.
        """
        super().__init__()
        self.register_modules(
            unet=unet, vae=vae, scheduler=scheduler, prompt=prompt, controlnet=controlnet, stage1=stage1
        )
        for part in (unet, vae, prompt, controlnet, stage1):
            if part is not None:
                settle(part)
        self.register_to_config(
            kind=kind,
            image_size_px=image_size_px,
            steps=steps,
            eta=eta,
            start_fraction=start_fraction,
            control_scale=control_scale,
            timestep=timestep,
            condition_noise_timestep=condition_noise_timestep,
            finds=finds,
            color_fix=color_fix,
        )

    def __call__(
        self,
        image: Image.Image | Sequence[Image.Image],
        seed: int | Sequence[int] = 0,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        color_fix: ColorFix | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
    ) -> ImagePipelineOutput:
        """Restore faces, each in its own size; a face without colour stays without.

        A square face of `image_size_px` is restored bit for bit as by FaceReward; others are resized, as Pillow does
        it, filled up with their borders to squares, and cut again.

        Args:
            image: aligned faces.
            seed: of the noise, one for all or one per face; one-step restorers draw none.
            num_inference_steps, eta, color_fix: the restorer's own where None.
            output_type: Pillow's images, (H, W, 3) uint8 arrays, or the restored squares as one (N, 3, H, W) tensor.
        Returns:
            with the field `images`.
        Raises:
            ValueError: another number of seeds than of faces, or of steps than the schedule has.
        """
        faces = [image] if isinstance(image, Image.Image) else list(image)
        seeds = [seed] * len(faces) if isinstance(seed, int) else list(seed)
        photos = [np.array(face.convert("RGB")) for face in faces]
        squares = [fill_square(photo, self.config.image_size_px) for photo in photos]
        lq = torch.from_numpy(np.stack([square for square, _ in squares])).permute(0, 3, 1, 2).float() / 255.0
        restored = self.restore(lq.to(self.device), seeds, num_inference_steps, eta, color_fix)
        if output_type == "pt":
            return ImagePipelineOutput(images=restored)
        rounded = (restored.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        found = [
            resize(keep_grey(one[place], photo), (photo.shape[1], photo.shape[0]))
            for one, (_, place), photo in zip(rounded, squares, photos, strict=True)
        ]
        return ImagePipelineOutput(images=found if output_type == "np" else [Image.fromarray(one) for one in found])

    @torch.no_grad()
    def restore(
        self,
        lq: Tensor,
        seeds: Sequence[int],
        steps: int | None = None,
        eta: float | None = None,
        color_fix: ColorFix | None = None,
    ) -> Tensor:
        """The restored squares, (N, 3, H, W) float32 in [0, 1], of (N, 3, H, W); see `__call__`."""
        if len(seeds) != len(lq):
            raise ValueError(f"expected one seed per image, got {len(seeds)} for {len(lq)}")
        lq, fix = lq.float(), color_fix or self.config.color_fix
        if self.config.kind == "one_step":
            if steps not in (None, 1):
                raise ValueError(f"this restorer takes one step, not {steps}")
            return fix_color(self.restore_in_one_step(lq, seeds).clamp(0, 1), lq, fix).clamp(0, 1)
        cleaned = self.clean(lq)
        latents = self.denoise(self.encode(cleaned), seeds, steps or self.config.steps, eta)
        return fix_color(self.decode(latents), cleaned, fix).clamp(0, 1)

    def restore_in_one_step(self, lq: Tensor, seeds: Sequence[int]) -> Tensor:
        """Take the noise that the denoiser finds in the latents out of them: (x - sqrt(1 - a) eps) / sqrt(a)."""
        latents, timestep = self.encode(lq), self.config.timestep
        alphas = self.scheduler.alphas_cumprod.tolist()
        if before := self.config.condition_noise_timestep:
            noise = next(draw(seeds, latents, 1))
            latents = math.sqrt(alphas[before]) * latents + math.sqrt(1 - alphas[before]) * noise
        embedding, dtype = self.prompt(len(lq)).float(), dtype_of(self.unet)
        output = self.unet(latents.to(dtype), timestep, embedding.to(dtype), return_dict=False)[0].float()
        if self.config.finds == "residual":
            return self.decode(latents - output)
        return self.decode((latents - math.sqrt(1 - alphas[timestep]) * output) / math.sqrt(alphas[timestep]))

    def clean(self, lq: Tensor) -> Tensor:
        """Stage 1's image, not clamped; `lq` itself without a stage 1."""
        if self.stage1 is None:
            return lq
        pixels = lq.to(dtype_of(self.stage1))
        if not hasattr(self.stage1, "time_embedding"):  # no UNet2DModel: pixels to pixels
            found: Tensor = self.stage1(pixels)
            return found.float()
        correction = self.stage1(F.pixel_unshuffle(pixels * 2 - 1, 2), 0, return_dict=False)[0]
        return (pixels + F.pixel_shuffle(correction, 2)).float()

    def encode(self, pixels: Tensor) -> Tensor:
        """The latents of pixels: the posterior's mean, scaled."""
        posterior = self.vae.encode((pixels * 2 - 1).to(dtype_of(self.vae))).latent_dist
        latents: Tensor = posterior.mean * self.vae.config.scaling_factor
        return latents.float()

    def decode(self, latents: Tensor) -> Tensor:
        """The pixels of latents, not clamped."""
        scaled = (latents / self.vae.config.scaling_factor).to(dtype_of(self.vae))
        image: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return image.float() / 2 + 0.5

    def denoise(self, condition: Tensor, seeds: Sequence[int], steps: int, eta: float | None) -> Tensor:
        """Take the steps of DDIM (arXiv:2010.02502, equations 12 and 16) that lie after `start_fraction`."""
        eta, start = self.config.eta if eta is None else eta, self.config.start_fraction
        plan = self.plan_steps(steps)
        noises = draw(seeds, condition, 1 + len(plan) * (eta > 0))
        latents: Tensor = next(noises)
        alphas = self.scheduler.alphas_cumprod.tolist()
        if start < 1:
            alpha = self.scheduler.alphas_cumprod[plan[0][0]]
            latents = alpha.sqrt() * condition + (1 - alpha).sqrt() * latents
        embedding = self.prompt(len(condition)).float()
        at = torch.tensor([timestep for timestep, _ in plan], device=condition.device)
        for place, (timestep, following) in enumerate(plan):
            output = self.predict(latents, at[place], condition, embedding)
            x0, noise = self.read_output(latents, output, alphas[timestep])
            alpha, alpha_next = alphas[timestep], alphas[max(0, following)]
            sigma = eta * math.sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))
            latents = math.sqrt(alpha_next) * x0 + math.sqrt(max(0.0, 1 - alpha_next - sigma**2)) * noise
            if eta > 0:
                latents = latents + sigma * next(noises)
        return latents

    def plan_steps(self, steps: int) -> list[tuple[int, int]]:
        """(timestep, next timestep) of each step; the last goes to -1."""
        known = int(self.scheduler.config.num_train_timesteps)
        if not 1 <= steps <= known:
            raise ValueError(f"steps must be 1 to {known}, got {steps}")
        self.scheduler.set_timesteps(steps)
        timesteps = [min(int(timestep), known - 1) for timestep in self.scheduler.timesteps]
        taken = timesteps[-max(1, round(steps * self.config.start_fraction)) :]
        return list(zip(taken, [*taken[1:], -1], strict=True))

    def predict(self, latents: Tensor, timestep: Tensor, condition: Tensor, embedding: Tensor) -> Tensor:
        """What the denoiser says under the ControlNet, (N, c, h, w): the noise, or v."""
        dtype = dtype_of(self.controlnet)
        both = torch.cat([latents.to(dtype), condition.to(dtype)], dim=1)
        down, middle = self.controlnet(
            both,
            timestep,
            embedding.to(dtype),
            both.new_zeros(len(both), 1, *both.shape[2:]),  # the hint, whose encoder has but zeros
            conditioning_scale=self.config.control_scale,
            return_dict=False,
        )
        dtype = dtype_of(self.unet)
        output: Tensor = self.unet(
            latents.to(dtype),
            timestep,
            embedding.to(dtype),
            down_block_additional_residuals=[residual.to(dtype) for residual in down],
            mid_block_additional_residual=middle.to(dtype),
            return_dict=False,
        )[0]
        return output.float()

    def read_output(self, latents: Tensor, output: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """(clean latents, noise) by what the denoiser said; v as in arXiv:2202.00512, appendix D."""
        signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
        if self.scheduler.config.prediction_type == "epsilon":
            return (latents - noise * output) / signal, output
        return signal * latents - noise * output, signal * output + noise * latents


def settle(part: nn.Module) -> None:
    """Have a part's weights as FaceReward has them, so that torch multiplies them by the same kernels, to the last bit.

    It takes others where a weight wants a gradient, though none is computed, and where it does not begin at a multiple
    of 64 bytes, as in the memory that a file is mapped into.
    """
    for parameter in part.requires_grad_(False).parameters():
        if parameter.data_ptr() % ALIGNMENT_BYTES:
            parameter.data = parameter.data.clone()


def draw(seeds: Sequence[int], like: Tensor, count: int) -> Iterator[Tensor]:
    """Normal noises of the latents' shape, each image's of its own seed, drawn on the CPU, so alike on every device."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    drawn = [torch.stack([torch.randn(*like.shape[1:], generator=one) for one in generators]) for _ in range(count)]
    return iter(torch.stack(drawn).to(like.device))


def dtype_of(module: nn.Module) -> torch.dtype:
    """What a part computes in."""
    return next(module.parameters()).dtype


def fill_square(photo: Pixels, size_px: int) -> tuple[Pixels, tuple[slice, slice]]:
    """A face as a square of this size, its longer side filling it, and where in the square it lies."""
    height, width = photo.shape[:2]
    scale = size_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    top, left = (size_px - size[1]) // 2, (size_px - size[0]) // 2
    borders = ((top, size_px - size[1] - top), (left, size_px - size[0] - left), (0, 0))
    place = slice(top, top + size[1]), slice(left, left + size[0])
    return np.pad(resize(photo, size), borders, mode="edge"), place


def resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    """An image in this (width, height): averaged where it shrinks, else by cubic splines."""
    if (image.shape[1], image.shape[0]) == size:
        return np.ascontiguousarray(image)
    way = Image.Resampling.BOX if size[0] < image.shape[1] else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size, way))


def keep_grey(restored: Pixels, photo: Pixels) -> Pixels:
    """Keep only the lightness of a restored image where the photo has no colour; rounded as OpenCV does it."""
    if int((photo.max(axis=2) - photo.min(axis=2)).max()) > MAX_GREY_SPREAD:
        return restored
    weighted = restored.astype(np.uint32) @ np.array([9798, 19235, 3735], dtype=np.uint32)
    lightness = ((weighted + (1 << 14)) >> 15).astype(np.uint8)
    return np.repeat(lightness[..., None], 3, axis=2)


def fix_color(content: Tensor, style: Tensor, kind: ColorFix) -> Tensor:
    """Restored images with the colours of what they were restored from; not clamped."""
    if kind == "none":
        return content
    if kind == "wavelet":
        return content - compute_low_band(content) + compute_low_band(style)
    if kind != "adain":
        raise ValueError(f"no colour fix {kind!r}; there are wavelet, adain and none")
    mean, std = (measure(content, which) for which in ("mean", "std"))
    return (content - mean) / std * measure(style, "std") + measure(style, "mean")


def measure(image: Tensor, which: str) -> Tensor:
    """(N, 3, 1, 1) mean or standard deviation of each channel."""
    if which == "mean":
        return image.mean(dim=(2, 3), keepdim=True)
    return torch.sqrt(image.var(dim=(2, 3), keepdim=True) + VARIANCE_FLOOR)


def compute_low_band(image: Tensor) -> Tensor:
    """Blur an image by [1 2 1] / 4 across and down with dilation 1, 2, 4, …, borders replicated."""
    channels = image.shape[1]
    taps = image.new_tensor([0.25, 0.5, 0.25])
    across = taps.reshape(1, 1, 1, 3).expand(channels, 1, 1, 3)
    down = taps.reshape(1, 1, 3, 1).expand(channels, 1, 3, 1)
    for dilation_px in (2**level for level in range(WAVELET_LEVELS)):
        padded = F.pad(image, (dilation_px,) * 4, mode="replicate")
        blurred = F.conv2d(padded, across, groups=channels, dilation=dilation_px)
        image = F.conv2d(blurred, down, groups=channels, dilation=dilation_px)
    return image
