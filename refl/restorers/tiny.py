"""Define the tiny restorer: DiffBIR's parts at a size that restores 64 × 64 faces on a CPU in a fraction of a second.

A folder of it holds `model.safetensors` (float16) and `config.json` (a TinyConfig); the shipped one is `tiny_weights/`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from pydantic import ValidationError
from torch import Tensor, nn

from db.errors import UserError, first_fault
from metrics.download import compute_sha256
from refl.published.control import ConditionControlNet
from refl.restorers.diffusion import DiffusionRestorer, DiffusionSettings
from refl.restorers.tiny_config import TinyConfig
from runs.files import read_json, write_text_whole
from training.weights import check_strictly, read_weights, save_tensors

SHIPPED = Path(__file__).parent / "tiny_weights"
LEVELS = 3


class Stage1(nn.Module):
    """A small regression network that adds its correction to the image; (N, 3, H, W) to the same, not clamped."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.net = UNet2DModel(
            in_channels=12,
            out_channels=12,
            block_out_channels=config.stage1_channels,
            layers_per_block=config.layers,
            down_block_types=("DownBlock2D",) * LEVELS,
            up_block_types=("UpBlock2D",) * LEVELS,
            norm_num_groups=config.norm_groups,
            add_attention=False,
        )

    def forward(self, lq: Tensor) -> Tensor:
        small = F.pixel_unshuffle(lq * 2 - 1, 2)
        correction: Tensor = self.net(small, 0, return_dict=False)[0]
        return lq + F.pixel_shuffle(correction, 2)


class LearnedPrompt(nn.Module):
    """Stands for a text encoder: one learned embedding, whatever the prompt says."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(tokens, channels))

    def forward(self, prompts: Sequence[str]) -> Tensor:
        return self.embedding.expand(len(prompts), -1, -1)


def make_tiny(config: TinyConfig, base: str = "tiny", weights: dict[str, str] | None = None) -> DiffusionRestorer:
    """A tiny restorer with random weights, drawn from torch's generator; on the CPU, in eval mode."""
    shared = {
        "block_out_channels": config.unet_channels,
        "layers_per_block": config.layers,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": config.prompt_channels,
        "attention_head_dim": (2, 4, 4),  # heads a level, as diffusers reads it
        "norm_num_groups": config.norm_groups,
        "use_linear_projection": True,
    }
    unet = UNet2DConditionModel(
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        **shared,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * LEVELS,
        up_block_types=("UpDecoderBlock2D",) * LEVELS,
        block_out_channels=config.vae_channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=config.vae_norm_groups,
        mid_block_add_attention=False,
        sample_size=config.image_size_px,
        scaling_factor=config.scaling_factor,
    )
    use = DiffusionSettings(
        image_size_px=config.image_size_px,
        steps=config.steps,
        eta=config.eta,
        start_fraction=config.start_fraction,
        prediction=config.prediction,
        color_fix=config.color_fix,
    )
    control = ConditionControlNet(in_channels=2 * config.latent_channels, **shared)
    text = LearnedPrompt(config.prompt_tokens, config.prompt_channels)
    return DiffusionRestorer(
        unet, control, vae, use, text=text, stage1=Stage1(config), base=base, weights=weights
    ).eval()


def load_tiny(folder: Path = SHIPPED) -> DiffusionRestorer:
    """The tiny restorer of a folder that `python -m refl pretrain` wrote; on the CPU, float32, nothing trainable.

    Raises:
        UserError: a file is missing, damaged, or not one of this version.
    """
    config = read_tiny_config(folder)
    path = folder / "model.safetensors"
    state, sha256 = read_weights(path), compute_sha256(path)
    base = "tiny" if folder == SHIPPED else str(folder)
    restorer = make_tiny(config, base, {path.name: sha256})
    check_strictly(restorer.state_dict(), state, path, str(folder / "config.json"))
    restorer.load_state_dict(state, strict=True)
    return restorer.requires_grad_(False)


def read_tiny_config(folder: Path) -> TinyConfig:
    """The `config.json` of a folder.

    Raises:
        UserError: missing, or a value is not allowed.
    """
    path = folder / "config.json"
    try:
        return TinyConfig.model_validate(read_json(path, "Give a folder of a tiny restorer."))
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}.") from error


def save_tiny(restorer: DiffusionRestorer, config: TinyConfig, folder: Path) -> None:
    """Write `model.safetensors` in float16 and `config.json`; a file is there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().half().contiguous() for name, value in restorer.state_dict().items()}
    save_tensors(state, folder / "model.safetensors")
    write_text_whole(folder / "config.json", json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
