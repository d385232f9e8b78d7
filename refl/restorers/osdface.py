"""Restore by OSDFace (arXiv:2411.17163): Stable Diffusion 2.1 with adapters, in one step from timestep 399.

The denoiser attends not to a text but to words that an encoder finds in the face; see `refl.restorers.osdface_prompt`.
There is no colour fix. The published code draws the latents from the encoder's posterior; here they are its mean.

Three files: the adapters in safetensors by diffusers' names (`unet.LAYER.lora_A.weight`; of attention's layers
`unet.LAYER.lora.down.weight`), which count once; the prompt encoder's checkpoint; what widens its words.

Source: infer.py and utils/others.py of jkwang28/OSDFace. Its weights were not seen here: which layers have adapters is
read from the file, as is their rank, 16 by default there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from refl.published.weights import find_each
from refl.restorers.adapted import AdaptedRestorer, Adapters, find_layers, load_adapted
from refl.restorers.diffbir import STABLE_DIFFUSION, make_stable_diffusion
from refl.restorers.hypir import list_adapted_layers
from refl.restorers.one_step import OneStepSettings
from refl.restorers.osdface_prompt import PromptEncoder, fill_prompt_encoder, make_prompt_encoder
from refl.restorers.osediff_lora import add_adapters
from refl.restorers.surface import HeldPrompt
from training.weights import map_weights

WEIGHTS = "osdface-lora"
"""Name of the adapters in the manifest of weights; of the prompt encoder's two files below."""
PROMPT_WEIGHTS = ("osdface-prompt", "osdface-embedding")
ADAPTER = "default"
RANK = 16
FULL_WIDTHS = [64, 128, 128, 128, 256, 512]
"""Channels of the published prompt encoder's levels."""
USE = OneStepSettings(timestep=399)


class OSDFace(AdaptedRestorer):
    """Restore in one step, the same for every seed; see `refl.restorers.surface`."""

    def __init__(self, *arguments: Any, prompt_encoder: PromptEncoder, **named: Any) -> None:
        """Take the parts of a `LatentRestorer` but the text encoder's place, and what tells the denoiser the face."""
        super().__init__(*arguments, **named)
        self.prompt_encoder = prompt_encoder

    def embed(self, lq: Tensor, embedding: Tensor) -> Tensor:  # noqa: ARG002
        """Find the words of the faces themselves; a text's embedding counts nothing."""
        found: Tensor = self.prompt_encoder(lq)
        return found


def make_no_text(width: int) -> HeldPrompt:
    """Make what stands for the text encoder, which this restorer has not.

    Args:
        width: of what the denoiser attends to.
    """
    return HeldPrompt(torch.zeros(1, 1, width))


def name_adapter_key(name: str) -> str:
    """The name of a tensor of the file as peft has it in the denoiser."""
    name = name.removeprefix("unet.").replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")
    return name.replace(".lora_A.weight", f".lora_A.{ADAPTER}.weight").replace(
        ".lora_B.weight", f".lora_B.{ADAPTER}.weight"
    )


def read_osdface_adapters(state: Mapping[str, Tensor], source: Path | str) -> Adapters:
    """Tell what OSDFace's file holds.

    Raises:
        UserError: no adapters, or such of several ranks.
    """
    named = {name_adapter_key(name): value for name, value in state.items()}
    return Adapters(named, {ADAPTER: find_layers(named, source)}, source)


def build_osdface(unet: UNet2DConditionModel, vae: AutoencoderKL, text: nn.Module, rank: int = RANK) -> OSDFace:
    """Build it with fresh adapters: its size without its numbers, if it has adapters where HYPIR has them."""
    add_adapters(unet, {ADAPTER: list_adapted_layers(unet)}, rank, rank)
    return OSDFace(unet, vae, text, USE, prompt_encoder=PromptEncoder(FULL_WIDTHS), base="osdface")


def list_osdface_files(asked: str) -> list[tuple[str, ...]]:
    """List, for each file that `load_osdface` takes, the names or paths of which one will do."""
    return [STABLE_DIFFUSION, (asked.partition(":")[2] or WEIGHTS,), *((name,) for name in PROMPT_WEIGHTS)]


def load_osdface(
    asked: str, folder: Path, dtype: torch.dtype = torch.float32, keep_float32: Collection[str] = ()
) -> OSDFace:
    """Load Stable Diffusion 2.1, the adapters beside it and the prompt encoder, on the CPU.

    The prompt encoder is float32 whatever is asked for: which word is nearest is a matter of rounding.

    Args:
        asked: "osdface", or "osdface:FILE" for other adapters, a path or a name of the manifest.
        folder, dtype, keep_float32: see `refl.restorers.osediff.load_osediff`.
    Raises:
        UserError: a file cannot be got, or is not what it should be.
    """
    files = base, *others = find_each(list_osdface_files(asked), folder)
    parts, (state, words, change) = make_stable_diffusion(base), [map_weights(one.path) for one in others]
    encoder = make_prompt_encoder(words, change, others[1].path)
    fill_prompt_encoder(encoder, words, change, others[1].path)
    read = read_osdface_adapters(state, others[0].path)
    named = {"text": make_no_text(parts.shape.context_width), "prompt_encoder": encoder}
    return load_adapted(
        OSDFace, parts, files, read, use=USE, asked=asked, dtype=dtype, keep_float32=keep_float32, **named
    )
