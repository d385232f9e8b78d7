"""Restore by OSEDiff (arXiv:2406.08177): Stable Diffusion 2.1 with adapters, in one step from the image's latents.

The image's latents are taken for those of the last timestep; see `refl.restorers.one_step`. The published code draws
the latents from the encoder's posterior, and describes each image by a tagger's words; here they are its mean, so that
an image has one result, and the prompt is fixed.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from refl.published.weights import find_any, find_each
from refl.restorers import lora
from refl.restorers.diffbir import STABLE_DIFFUSION, choose_dtypes, fill_stable_diffusion, make_stable_diffusion
from refl.restorers.one_step import OneStepRestorer, OneStepSettings
from refl.restorers.osediff_lora import (
    ENCODER,
    add_adapters,
    group_layers,
    list_encoder_layers,
    load_published_adapters,
    merge_lora,
)
from refl.restorers.record import Kind
from training.weights import read_checkpoint

FACE_ADAPTERS = "osediff-face"
"""Name of the adapters in the manifest of weights."""


class OSEDiff(OneStepRestorer):
    """Restore in one step, from the last timestep, the same for every seed; see `refl.restorers.surface`."""

    adapted: tuple[str, ...] = ("unet", "vae")

    def group_adapted(self) -> dict[str, dict[str, list[str]]]:
        """List the layers that get an adapter: part -> name of a group of adapters -> layers."""
        return {"unet": group_layers(self.unet), "vae": {ENCODER: list_encoder_layers(self.vae)}}

    def set_trainable(self, kind: Kind = "lora", rank: int = 4) -> None:
        """Merge the adapters, then put fresh ones on the same layers; only these are trained.

        Raises:
            ValueError: `kind` is not "lora"; there is no ControlNet here.
        """
        if kind != "lora":
            raise ValueError(f"{type(self).__name__} is trained by LoRA; it has no {kind}")
        for part in self.find_parts().values():
            merge_lora(part)
        self.requires_grad_(False)
        for name, groups in self.group_adapted().items():
            add_adapters(self.get_submodule(name), groups, rank, alpha=rank)
        self.trained = lora.Trained("lora", rank)


def build_osediff(unet: UNet2DConditionModel, vae: AutoencoderKL, text: nn.Module) -> OSEDiff:
    """Build it of these parts, adapters merged."""
    return OSEDiff(unet, vae, text, OneStepSettings(), base="osediff")


def list_osediff_files(asked: str) -> list[tuple[str, ...]]:
    """List, for each file that `load_osediff` takes, the names or paths of which one will do."""
    return [STABLE_DIFFUSION, (asked.partition(":")[2] or FACE_ADAPTERS,)]


def load_plain_vae(folder: Path) -> AutoencoderKL:
    """Stable Diffusion's autoencoder without adapters, on the CPU: whose latents are what an image is.

    Raises:
        UserError: its file cannot be got, or is not what it should be.
    """
    base = find_any(STABLE_DIFFUSION, folder)
    parts = make_stable_diffusion(base)
    fill_stable_diffusion(parts, base, {"vae": torch.float32})
    return parts.vae.requires_grad_(False)


def load_osediff(
    asked: str, folder: Path, dtype: torch.dtype = torch.float32, keep_float32: Collection[str] = ()
) -> OSEDiff:
    """Load Stable Diffusion 2.1 and the published adapters, merged, on the CPU.

    Denoiser and autoencoder are read and merged in float32 and then cast: merged in bfloat16, an adapter's numbers
    would be lost beside those that they are added to.

    Args:
        asked: "osediff" for the adapters for faces, "osediff:FILE" for others, a path or a name of the manifest.
        folder: where weight files lie.
        dtype: what the parts' numbers become.
        keep_float32: parts that are float32 nonetheless.
    Raises:
        UserError: a file cannot be got, or is not what it should be.
    """
    base, adapters = find_each(list_osediff_files(asked), folder)
    parts, content = make_stable_diffusion(base), read_checkpoint(adapters.path)
    load_published_adapters(deepcopy(parts.unet), deepcopy(parts.vae), content, adapters.path)  # on meta: a check
    fill_stable_diffusion(parts, base, {"unet": torch.float32, "vae": torch.float32})
    load_published_adapters(parts.unet, parts.vae, content, adapters.path)
    dtypes = choose_dtypes(dtype, keep_float32)
    for part, name in ((parts.unet, "unet"), (parts.vae, "vae")):
        merge_lora(part)
        nn.Module.to(part, dtypes[name])  # for diffusers' `to` warns of parts to keep in float32, of which are none
    fill_stable_diffusion(parts, base, {"text": dtypes["text"]})
    # the published code gives general images the colours of the input, and faces not
    use = OneStepSettings(color_fix="none" if asked == "osediff" else "adain")
    weights = {found.path.name: found.sha256 for found in (base, adapters)}
    restorer = OSEDiff(parts.unet, parts.vae, parts.text, use, base=asked, weights=weights).eval()
    return restorer.requires_grad_(False)
