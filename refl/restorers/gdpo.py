"""Restore by GDPO-SR (arXiv:2603.16769): Stable Diffusion 2.1 tuned, in one step from latents that are noised first.

The image's latents are noised to timestep 250 and the denoiser is called at timestep 100, whose share of noise is taken
off ("unequal timesteps"); seeds give different images. The published script describes each image by a tagger's words
and "clean, high-resolution, 8k"; here the prompt is those words alone. Latents are the posterior's mean before noise.

Published are a denoiser and an autoencoder with their adapters merged, as diffusers writes them (`ckp/GDPOSR/unet`,
`…/vae` of Joypop/GDPO); the text encoder is Stable Diffusion's. What its training saves is a table like OSEDiff's, of
the denoiser alone (`rank_unet`, `unet_lora_*_modules`, `state_dict_unet`), which `mergelora.py` merges: `gdpo:FILE`
takes one, and so is a tuned one exported.

Source: GDPOSR/modelfile/GDPOSR.py, GDPOSR/inferences/test.py, GDPOSR/mergelora.py and scripts/test/test.sh of
Joyies/GDPO. Its weights were not seen here; the names of the two files are those that diffusers gives.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from refl.published.weights import FoundFile, find_each
from refl.restorers.diffbir import STABLE_DIFFUSION, choose_dtypes, fill_stable_diffusion, make_stable_diffusion
from refl.restorers.one_step import OneStepSettings
from refl.restorers.osediff import OSEDiff
from refl.restorers.osediff_lora import DECODER, OTHERS, group_layers, load_denoiser_adapters, merge_lora
from training.weights import State, load_strictly, read_checkpoint, read_weights

PARTS = {"unet": "gdpo-unet", "vae": "gdpo-vae"}
"""Part -> its name in the manifest of weights."""
USE = OneStepSettings(
    prompt="clean, high-resolution, 8k", color_fix="adain", timestep=100, condition_noise_timestep=250
)
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""diffusers' names of an autoencoder's attention before version 0.14, and after."""


class Gdpo(OSEDiff):
    """Restore in one step, by a seed's noise; see `refl.restorers.surface`."""

    adapted = ("unet",)

    def group_adapted(self) -> dict[str, dict[str, list[str]]]:
        """See `OSEDiff.group_adapted`; there the last convolution belongs to the way up, here to the others."""
        return {"unet": group_denoiser(self.unet)}


def group_denoiser(unet: nn.Module) -> dict[str, list[str]]:
    """List the denoiser's layers that get an adapter, in GDPO-SR's groups."""
    groups = group_layers(unet)
    groups[OTHERS] += [name for name in groups[DECODER] if name == "conv_out"]
    groups[DECODER] = [name for name in groups[DECODER] if name != "conv_out"]
    return groups


def build_gdpo(unet: UNet2DConditionModel, vae: AutoencoderKL, text: nn.Module) -> Gdpo:
    """Build it of these parts."""
    return Gdpo(unet, vae, text, USE, base="gdpo")


def list_gdpo_files(asked: str) -> list[tuple[str, ...]]:
    """List, for each file that `load_gdpo` takes, the names or paths of which one will do."""
    file = asked.partition(":")[2]
    return [STABLE_DIFFUSION, *((name,) for name in PARTS.values()), *([(file,)] if file else [])]


def load_gdpo(asked: str, folder: Path, dtype: torch.dtype = torch.float32, keep_float32: Collection[str] = ()) -> Gdpo:
    """Load the published denoiser and autoencoder, and Stable Diffusion 2.1's text encoder, on the CPU.

    Args:
        asked: "gdpo", or "gdpo:FILE" for adapters on it, a path or a name of the manifest.
        folder, dtype, keep_float32: see `refl.restorers.osediff.load_osediff`.
    Raises:
        UserError: a file cannot be got, or is not what it should be.
    """
    files = list_gdpo_files(asked)
    found = find_each(files, folder)
    base, published = found[0], dict(zip(PARTS, found[1:], strict=False))
    parts, dtypes = make_stable_diffusion(base), choose_dtypes(dtype, keep_float32)
    for adapters in found[3:]:
        load_denoiser_adapters(deepcopy(parts.unet), read_checkpoint(adapters.path), adapters.path)  # on meta: a check
    fill_stable_diffusion(parts, base, {"text": dtypes["text"]})
    for name, part in (("unet", parts.unet), ("vae", parts.vae)):
        state = read_diffusers(published[name], torch.float32 if found[3:] else dtypes[name])
        load_strictly(part, state, published[name].path, f"GDPO-SR's {name}")
    for adapters in found[3:]:
        load_denoiser_adapters(parts.unet, read_checkpoint(adapters.path), adapters.path)
        merge_lora(parts.unet)
    for name, part in (("unet", parts.unet), ("vae", parts.vae)):
        nn.Module.to(part, dtypes[name])  # as in load_osediff
    weights = {one.path.name if at in (0, 3) else f"{files[at][0]}": one.sha256 for at, one in enumerate(found)}
    return Gdpo(parts.unet, parts.vae, parts.text, USE, base=asked, weights=weights).eval().requires_grad_(False)


def read_diffusers(file: FoundFile, dtype: torch.dtype) -> State:
    """Read a part as diffusers writes it, its names those of now."""
    return {rename_attention(name): value for name, value in read_weights(file.path, dtype).items()}


def rename_attention(name: str) -> str:
    """The name of now of a tensor of an autoencoder's attention; other names stay."""
    for old, new in OLD_ATTENTION.items():
        name = name.replace(old, new)
    return name
