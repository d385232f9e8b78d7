"""Make restorers of published shapes with random weights, and sample DiffBIR's own way, for benchmarks/restoring.py."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from spandrel.architectures.SwinIR import SwinIR, SwinIRArch
from torch import Tensor, nn

from refl.faces.color_fix import fix_color_by_wavelet
from refl.published.shapes import (
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_VAE,
    UNetShape,
    make_autoencoder,
    make_control,
    make_unet,
)
from refl.published.text_encoder import TextEncoder
from refl.restorers.diffusion import DiffusionRestorer, DiffusionSettings
from refl.restorers.feedforward import FeedForwardRestorer
from refl.restorers.one_step import OneStepSettings
from refl.restorers.osediff import OSEDiff
from refl.restorers.tiny import SHIPPED, load_tiny, make_tiny
from refl.restorers.tiny_config import TinyConfig

SHAPES = {
    "full": STABLE_DIFFUSION,
    "small": UNetShape((64, 128, 256, 256), 1, (1, 2, 4, 4), (True, True, True, False), 1, 64),
}
VAE_WIDTHS = {"full": STABLE_DIFFUSION_VAE, "small": (32, 64, 128, 128)}
SWINIR = {"full": (180, [6] * 8, [6] * 8), "small": (60, [2, 2], [6, 6])}
"""Width, and a stage's blocks and heads."""


def make_restorer(
    kind: str, size: str, image_size_px: int, steps: int, device: str, dtype: torch.dtype
) -> tuple[Any, str]:
    """A restorer on the device, and whose weights it has."""
    torch.manual_seed(0)
    if kind == "tiny":
        shipped = (SHIPPED / "model.safetensors").is_file()
        tiny = load_tiny() if shipped else make_tiny(TinyConfig(), "tiny", {})
        return tiny.to(device).requires_grad_(False), "shipped" if shipped else "random"
    with torch.device(device):
        swinir = make_swinir(size)
        if kind == "feedforward":
            return FeedForwardRestorer(swinir, "feedforward", {}, dtype).to(device), "random"
        unet, text = make_unet(SHAPES[size]).to(dtype), make_text(size).to(dtype)
        vae = make_autoencoder(VAE_WIDTHS[size]).to(dtype)
        if kind == "osediff":
            osediff = OSEDiff(unet, vae, text, OneStepSettings(image_size_px)).eval()
            return osediff.requires_grad_(False), "random"
        control = make_control(SHAPES[size], 8).to(dtype)
    use = DiffusionSettings(image_size_px=image_size_px, steps=steps)
    restorer = DiffusionRestorer(unet, control, vae, use, text=text, stage1=swinir.model).eval()
    return restorer.requires_grad_(False), "random"


def make_swinir(size: str) -> Any:
    """DiffBIR's stage 1 as spandrel holds it."""
    width, blocks, heads = SWINIR[size]
    model = SwinIR(
        img_size=64,
        embed_dim=width,
        depths=blocks,
        num_heads=heads,
        window_size=8,
        mlp_ratio=2.0,
        upscale=8,
        upsampler="nearest+conv",
        start_unshuffle=8,
    )
    state = {key.replace("conv_first.", "conv_first.1."): value for key, value in model.state_dict().items()}
    descriptor = SwinIRArch().load(state)
    descriptor.model.eval()
    return descriptor


def make_text(size: str) -> nn.Module:
    """OpenCLIP's text half."""
    width, layers = (1024, 24) if size == "full" else (64, 2)
    return TextEncoder(77, 49408, width, width // 64, layers, width)


@torch.no_grad()
def restore_in_diffbirs_way(restorer: DiffusionRestorer, lq: Tensor, steps: int | None = None) -> Tensor:
    """The steps of DiffBIR's pipeline and DDIM sampler with these networks, guidance off, eta 1.

    Source: `diffbir/pipeline.py` (SwinIRPipeline, apply_cldm) and `sampler/ddim_sampler.py` of XPixelGroup/DiffBIR at
    3f8b530: image and prompts are encoded for the conditional and the unconditional branch, though guidance of scale
    1 uses the first alone; the 13 control outputs are scaled one by one; constants are gathered for each image at each
    step; the result is resized to the size that it has.
    """
    stage1, text = restorer.stage1, restorer.text
    assert stage1 is not None
    assert text is not None
    cleaned = stage1(lq)
    condition, _ = (restorer.encode_pixels(cleaned) for _ in ("conditional", "unconditional"))
    embedding, _ = (text([prompt] * len(lq)) for prompt in ("", "low quality, blurry, low-resolution, noisy"))
    plan = restorer.plan_steps(steps)
    alphas = restorer.alphas[[timestep for timestep, _ in plan]].to(lq.device)
    before = restorer.alphas[[max(previous, 0) for _, previous in plan]].to(lq.device)
    sigmas = ((1 - before) / (1 - alphas) * (1 - alphas / before)).sqrt()
    latents = torch.randn_like(condition)
    for number, (timestep, _) in enumerate(plan):
        at = torch.full((len(lq),), timestep, device=lq.device, dtype=torch.long)
        index = torch.full((len(lq),), number, device=lq.device, dtype=torch.long)
        residuals = restorer.compute_control(latents, at, condition, embedding)
        residuals = tuple(residual * scale for residual, scale in zip(residuals, [1.0] * len(residuals), strict=True))
        output = restorer.predict_output(latents, at, condition, embedding, residuals)
        noise_pred = restorer.to_noise(latents, at, output)
        alpha, alpha_before, sigma = (
            values.gather(-1, index).reshape(-1, 1, 1, 1) for values in (alphas, before, sigmas)
        )
        x0 = (latents - (1 - alpha).sqrt() * noise_pred) / alpha.sqrt()
        direction = (1 - alpha_before - sigma**2).sqrt() * noise_pred
        latents = alpha_before.sqrt() * x0 + direction + sigma * torch.randn_like(latents)
    restored = fix_color_by_wavelet(restorer.decode(latents), cleaned)
    restored = F.interpolate(restored, size=lq.shape[2:], mode="bicubic", antialias=True)
    return (restored * 255).clamp(0, 255).to(torch.uint8)
