"""Restore by PiSA-SR (arXiv:2412.03017): Stable Diffusion 2.1 with adapters for pixels and for meaning, in one step.

The denoiser, called at timestep 1, finds not the noise but what is to be taken off the latents. Its adapters come in
two kinds, for fidelity of pixels and for semantic detail; how much each counts can be set (`lambda_pix`, `lambda_sem`).
Where that is 1 and 1, as published, one call gives both; else a second one gives the pixels' share.

Its file is a table: the layers of each of six groups of adapters, the ranks of both kinds (4), and tensors by peft's
names; the published code leaves peft's alpha of 8, so that they count 8 / rank. It draws the latents from the encoder's
posterior; here they are its mean. The prompt is empty, as its script has it.

Source: pisasr.py and test_pisasr.py of csslc/PiSA-SR. Its weights were not seen here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from db.errors import UserError
from refl.faces.color_fix import ColorFix
from refl.published.weights import find_each
from refl.restorers.adapted import AdaptedRestorer, Adapters, choose_adapters, load_adapted
from refl.restorers.diffbir import STABLE_DIFFUSION, make_stable_diffusion
from refl.restorers.one_step import OneStepSettings
from refl.restorers.osediff_lora import PUBLISHED_ALPHA, add_adapters, group_layers
from refl.restorers.record import Kind
from training.weights import read_checkpoint

WEIGHTS = "pisasr"
"""Name of the adapters in the manifest of weights."""
KINDS = ("pix", "sem")
PLACES = ("encoder", "decoder", "others")
"""Of a denoiser: the way down, the way up, the middle."""
RANK = 4


@dataclass(frozen=True)
class PisaSettings(OneStepSettings):
    """How much each kind of adapters counts: 1 as published, 0 not at all."""

    color_fix: ColorFix = "adain"
    timestep: int = 1
    lambda_pix: float = 1.0
    lambda_sem: float = 1.0


class PisaSR(AdaptedRestorer):
    """Restore in one step, the same for every seed; see `refl.restorers.surface`."""

    use: PisaSettings

    def predict_noise(self, condition: Tensor, embedding: Tensor) -> Tensor:
        """Call the denoiser, twice where the two kinds of adapters do not count alike: what is to be taken off."""
        whole = super().predict_noise(condition, embedding)
        if self.use.lambda_pix == self.use.lambda_sem == 1:
            return whole
        with choose_adapters(self.unet, lambda layer: [one for one in layer.active_adapters if "_pix" in one]):
            of_pixels = super().predict_noise(condition, embedding)
        return self.use.lambda_pix * of_pixels + self.use.lambda_sem * (whole - of_pixels)

    def to_x0(self, condition: Tensor, timestep: Tensor | int, output: Tensor) -> Tensor:  # noqa: ARG002
        """Take off what the denoiser found."""
        return condition - output

    def set_trainable(self, kind: Kind = "lora", rank: int = 0) -> None:
        """See `AdaptedRestorer.set_trainable`; both kinds are trained.

        Raises:
            ValueError: a kind does not count as published, which would be trained as if it did.
        """
        if (self.use.lambda_pix, self.use.lambda_sem) != (1, 1):
            raise ValueError("PiSA-SR is trained with lambda_pix and lambda_sem at 1")
        super().set_trainable(kind, rank)


def read_pisasr_adapters(content: Any, source: Path | str) -> Adapters:
    """Tell what PiSA-SR's file holds.

    Raises:
        UserError: it is another kind of file.
    """
    keys = {(kind, place): f"unet_lora_{place}_modules_{kind}" for kind in KINDS for place in PLACES}
    needed = [*keys.values(), *(f"lora_rank_unet_{kind}" for kind in KINDS), "state_dict_unet"]
    if not isinstance(content, Mapping) or (absent := [key for key in needed if key not in content]):
        what = f"it lacks {', '.join(absent)}" if isinstance(content, Mapping) else "it is not a table"
        raise UserError(f"{source}: not PiSA-SR's adapters: {what}.")
    ranks = {kind: int(content[f"lora_rank_unet_{kind}"]) for kind in KINDS}
    groups = {f"default_{place}_{kind}": (list(content[key]), ranks[kind]) for (kind, place), key in keys.items()}
    return Adapters(content["state_dict_unet"], groups, source, PUBLISHED_ALPHA)


def build_pisasr(unet: UNet2DConditionModel, vae: AutoencoderKL, text: nn.Module, rank: int = RANK) -> PisaSR:
    """Build it with fresh adapters, which change nothing: its size without its numbers."""
    groups = group_layers(unet)
    for kind in KINDS:
        add_adapters(unet, {f"{group}_{kind}": layers for group, layers in groups.items()}, rank, PUBLISHED_ALPHA)
    return PisaSR(unet, vae, text, PisaSettings(), base="pisasr")


def list_pisasr_files(asked: str) -> list[tuple[str, ...]]:
    """List, for each file that `load_pisasr` takes, the names or paths of which one will do."""
    return [STABLE_DIFFUSION, (asked.partition(":")[2] or WEIGHTS,)]


def load_pisasr(
    asked: str, folder: Path, dtype: torch.dtype = torch.float32, keep_float32: Collection[str] = ()
) -> PisaSR:
    """Load Stable Diffusion 2.1 and the adapters beside it, on the CPU.

    Args:
        asked: "pisasr", or "pisasr:FILE" for other adapters, a path or a name of the manifest.
        folder, dtype, keep_float32: see `refl.restorers.osediff.load_osediff`.
    Raises:
        UserError: a file cannot be got, or is not what it should be.
    """
    files = base, adapters = find_each(list_pisasr_files(asked), folder)
    parts, read = make_stable_diffusion(base), read_pisasr_adapters(read_checkpoint(adapters.path), adapters.path)
    use = PisaSettings()
    return load_adapted(PisaSR, parts, files, read, use=use, asked=asked, dtype=dtype, keep_float32=keep_float32)
