"""Read the architecture of a published Stable Diffusion 2 or DiffBIR file from the shapes of its tensors.

Only the width of an attention head leaves no trace in them; Stable Diffusion 2's is 64 throughout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from db.errors import UserError
from refl.published.control import ConditionControlNet
from refl.published.text_encoder import TextEncoder

HEAD_WIDTH = 64
SCALING_FACTOR = 0.18215
"""Of Stable Diffusion's latents; in no file either."""


@dataclass(frozen=True)
class UNetShape:
    """Shape that a denoiser and its ControlNet share."""

    widths: tuple[int, ...]
    """Channels of each level."""
    layers_per_block: int
    heads: tuple[int, ...]
    """Attention heads of each level."""
    attended: tuple[bool, ...]
    """Levels that have attention."""
    depth: int
    """Transformer blocks of an attention."""
    context_width: int
    """Of the prompt's embedding."""
    in_channels: int = 4
    out_channels: int = 4


STABLE_DIFFUSION = UNetShape((320, 640, 1280, 1280), 2, (5, 10, 20, 20), (True, True, True, False), 1, 1024)
"""Stable Diffusion 2.1's denoiser."""
STABLE_DIFFUSION_VAE = (128, 256, 512, 512)
"""Channels of each level of its autoencoder."""


def read_unet_shape(state: Mapping[str, Tensor], source: Path | str, head_width: int = HEAD_WIDTH) -> UNetShape:
    """The shape of a denoiser or ControlNet, its keys LDM's without prefix.

    Raises:
        UserError: the keys are of no such network.
    """
    downs = sorted(int(number) for number in _numbers(state, r"input_blocks\.(\d+)\.0\.op\.weight"))
    blocks = [int(number) for number in _numbers(state, r"input_blocks\.(\d+)\.0\.in_layers\.2\.weight")]
    contexts = [value.shape[1] for key, value in state.items() if key.endswith("attn2.to_k.weight")]
    if not blocks or not contexts or "input_blocks.0.0.weight" not in state:
        raise UserError(f"{source}: not the weights of a Stable Diffusion denoiser: no residual or attention blocks.")
    step = downs[0] if downs else max(blocks) + 1  # residual blocks of a level and its downsampling
    firsts = [1 + level * step for level in range(len(downs) + 1)]
    widths = tuple(int(state[f"input_blocks.{first}.0.in_layers.2.weight"].shape[0]) for first in firsts)
    return UNetShape(
        widths=widths,
        layers_per_block=step - 1,
        heads=tuple(max(1, width // head_width) for width in widths),
        attended=tuple(f"input_blocks.{first}.1.norm.weight" in state for first in firsts),
        depth=len(set(_numbers(state, r"middle_block\.1\.transformer_blocks\.(\d+)\.norm1\.weight"))),
        context_width=int(contexts[0]),
        in_channels=int(state["input_blocks.0.0.weight"].shape[1]),
        out_channels=int(state["out.2.weight"].shape[0]) if "out.2.weight" in state else 4,
    )


def make_unet(shape: UNetShape) -> UNet2DConditionModel:
    """A denoiser of this shape."""
    ups = ["CrossAttnUpBlock2D" if attended else "UpBlock2D" for attended in reversed(shape.attended)]
    return UNet2DConditionModel(
        in_channels=shape.in_channels, out_channels=shape.out_channels, up_block_types=tuple(ups), **_arguments(shape)
    )


def make_control(shape: UNetShape, in_channels: int) -> ConditionControlNet:
    """A ControlNet of the denoiser's shape; `in_channels` of noisy and condition latents together."""
    return ConditionControlNet(in_channels=in_channels, **_arguments(shape))


def make_vae(state: Mapping[str, Tensor], source: Path | str) -> AutoencoderKL:
    """An autoencoder of the shape of these tensors, their keys LDM's without prefix.

    Raises:
        UserError: the keys are of no such network.
    """
    levels = sorted({int(number) for number in _numbers(state, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight")})
    if not levels or "post_quant_conv.weight" not in state:
        raise UserError(f"{source}: not the weights of a Stable Diffusion autoencoder: no levels.")
    widths = tuple(int(state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0]) for level in levels)
    layers = len(_numbers(state, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight"))
    return make_autoencoder(widths, layers, int(state["post_quant_conv.weight"].shape[0]))


def make_autoencoder(widths: Sequence[int], layers: int = 2, latent_channels: int = 4) -> AutoencoderKL:
    """Stable Diffusion's autoencoder, of these channels at each level."""
    return AutoencoderKL(
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=latent_channels,
        scaling_factor=SCALING_FACTOR,
        sample_size=512,  # above it, tiling begins where it is switched on
    )


def make_text_encoder(state: Mapping[str, Tensor], source: Path | str, heads: int | None = None) -> TextEncoder:
    """A text encoder of the shape of these tensors, their keys open_clip's; heads 64 wide unless their number is given.

    Raises:
        UserError: the keys are of no such network.
    """
    if "token_embedding.weight" not in state or "text_projection" not in state or "positional_embedding" not in state:
        raise UserError(f"{source}: not the weights of an OpenCLIP text encoder: no embeddings.")
    vocabulary, width = state["token_embedding.weight"].shape
    encoder = TextEncoder(
        context_length=int(state["positional_embedding"].shape[0]),
        vocabulary=int(vocabulary),
        width=int(width),
        heads=heads or max(1, int(width) // HEAD_WIDTH),
        layers=len(set(_numbers(state, r"transformer\.resblocks\.(\d+)\.ln_1\.weight"))),
        out=int(state["text_projection"].shape[1]),
    )
    with torch.device("cpu"):  # the caller may be building on the meta device
        encoder.allocate_mask()
    return encoder


def _arguments(shape: UNetShape) -> dict[str, Any]:
    downs: Sequence[str] = ["CrossAttnDownBlock2D" if attended else "DownBlock2D" for attended in shape.attended]
    return {
        "block_out_channels": shape.widths,
        "layers_per_block": shape.layers_per_block,
        "down_block_types": tuple(downs),
        "attention_head_dim": shape.heads,  # in diffusers the number of heads, whatever its name
        "cross_attention_dim": shape.context_width,
        "transformer_layers_per_block": shape.depth,
        "use_linear_projection": True,
    }


def _numbers(state: Mapping[str, Tensor], pattern: str) -> list[str]:
    return [found[1] for key in state if (found := re.fullmatch(pattern, key))]
