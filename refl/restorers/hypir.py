"""Restore by HYPIR (arXiv:2507.20590): Stable Diffusion 2.1 with adapters of rank 256, one step from timestep 200.

Its file is a table of tensors by peft's names, `LAYER.lora_A.default.weight` and `…lora_B…`, on every attention,
feed-forward and convolution but the first; alpha is the rank, so that the adapters count once. The published code
draws the latents from the encoder's posterior, in bfloat16; here they are its mean, so that an image has one result.
The prompt is empty, as one of its captioners has it.

Source: HYPIR/enhancer/{base,sd2}.py, HYPIR/trainer/sd2.py and configs/sd2_train.yaml of XPixelGroup/HYPIR. Its weights
were not seen here: which names and shapes they have follows from that code, which loads them strictly.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from refl.published.weights import find_each
from refl.restorers.adapted import AdaptedRestorer, Adapters, find_layers, load_adapted
from refl.restorers.diffbir import STABLE_DIFFUSION, make_stable_diffusion
from refl.restorers.one_step import OneStepSettings
from refl.restorers.osediff_lora import add_adapters
from training.weights import map_weights

WEIGHTS = "hypir-sd2"
"""Name of the adapters in the manifest of weights."""
ADAPTER = "default"
"""peft's name of an adapter that was given none, as in the published file."""
RANK = 256
ATTENTION = ("to_k", "to_q", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.2", "ff.net.0.proj")
TARGETS = (*ATTENTION, "conv", "conv1", "conv2", "conv_shortcut", "conv_out")
"""Ends of the names of the layers that have an adapter."""
USE = OneStepSettings(color_fix="wavelet", timestep=200)


class Hypir(AdaptedRestorer):
    """Restore in one step, the same for every seed; see `refl.restorers.surface`."""


def list_adapted_layers(unet: nn.Module) -> list[str]:
    """List the denoiser's layers that have an adapter."""
    ends = tuple(f".{target}" for target in TARGETS)
    return [
        name
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and f".{name}".endswith(ends)
    ]


def read_hypir_adapters(state: Mapping[str, Tensor], source: Path | str) -> Adapters:
    """Tell what HYPIR's file holds.

    Raises:
        UserError: no adapters, or such of several ranks.
    """
    return Adapters(state, {ADAPTER: find_layers(state, source)}, source)


def build_hypir(unet: UNet2DConditionModel, vae: AutoencoderKL, text: nn.Module, rank: int = RANK) -> Hypir:
    """Build it with fresh adapters, which change nothing: its size without its numbers."""
    add_adapters(unet, {ADAPTER: list_adapted_layers(unet)}, rank, rank)
    return Hypir(unet, vae, text, USE, base="hypir")


def list_hypir_files(asked: str) -> list[tuple[str, ...]]:
    """List, for each file that `load_hypir` takes, the names or paths of which one will do."""
    return [STABLE_DIFFUSION, (asked.partition(":")[2] or WEIGHTS,)]


def load_hypir(
    asked: str, folder: Path, dtype: torch.dtype = torch.float32, keep_float32: Collection[str] = ()
) -> Hypir:
    """Load Stable Diffusion 2.1 and the adapters beside it, on the CPU.

    Args:
        asked: "hypir", or "hypir:FILE" for other adapters, a path or a name of the manifest.
        folder, dtype, keep_float32: see `refl.restorers.osediff.load_osediff`.
    Raises:
        UserError: a file cannot be got, or is not what it should be.
    """
    files = base, adapters = find_each(list_hypir_files(asked), folder)
    parts, read = make_stable_diffusion(base), read_hypir_adapters(map_weights(adapters.path), adapters.path)
    return load_adapted(Hypir, parts, files, read, use=USE, asked=asked, dtype=dtype, keep_float32=keep_float32)
