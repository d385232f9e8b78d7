"""Write a restorer as a folder that diffusers loads: its parts, the pipeline's file, adapters in diffusers' keys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ControlNetModel, ModelMixin, UNet2DModel
from torch import Tensor, nn

from db.errors import UserError
from refl.publish import pipeline
from refl.publish.pipeline import FixedPrompt, SwinIRStage
from refl.published.control import ConditionControlNet
from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.latent import LatentRestorer, make_schedule
from refl.restorers.load import AnyRestorer
from refl.restorers.lora import lora_layers
from refl.restorers.one_step import OneStepRestorer
from refl.restorers.osdface import OSDFace
from refl.restorers.osediff_lora import merge_lora
from refl.restorers.pisasr import PisaSR
from refl.restorers.tiny import Stage1
from training.weights import save_tensors

PIPELINE = Path(pipeline.__file__)
ADAPTERS_FILE = "pytorch_lora_weights.safetensors"
NAMES = {"unet": "unet", "control": "controlnet", "vae": "vae"}
"""Of our parts in diffusers' terms: their folders, and what their adapters' keys begin with."""


def check_publishable(restorer: AnyRestorer, asked: str) -> LatentRestorer:
    """Refuse a restorer that diffusers has no parts for.

    Raises:
        UserError: it is one.
    """
    if not isinstance(restorer, LatentRestorer):
        raise UserError(
            f"{asked} is one network, no diffusion model of diffusers' parts; its weight file is what others load."
        )
    if isinstance(restorer, OSDFace):
        raise UserError(f"{asked} finds its prompt in each face, by a network that diffusers has not: not published.")
    if isinstance(restorer, PisaSR) and (restorer.use.lambda_pix, restorer.use.lambda_sem) != (1, 1):
        raise UserError(f"{asked}: publish it with lambda_pix and lambda_sem at 1, as one call of the denoiser.")
    return restorer


def write_adapters(restorer: LatentRestorer, folder: Path, asked: str) -> int:
    """Write `pytorch_lora_weights.safetensors`, which `unet.load_lora_adapter(FOLDER, prefix="unet")` takes.

    Returns:
        How many tensors it holds.
    Raises:
        UserError: the restorer has no adapters.
    """
    state = list_adapters(restorer)
    if not state:
        raise UserError(f"{asked} was not tuned by LoRA and has no adapters. Leave --adapters-only out.")
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(state, folder / ADAPTERS_FILE)
    return len(state)


def list_adapters(restorer: LatentRestorer) -> dict[str, Tensor]:
    """The adapters that are not merged: `unet.….to_q.lora_A.weight` and so on; none where all are.

    Their scale is in `lora_B`, since diffusers takes 1 where a file names none. Several on one layer become one of
    the sum of their ranks.
    """
    state = {}
    for place, part in find_adapted(restorer).items():
        names = {id(layer): name for name, layer in part.named_modules()}
        for layer in lora_layers(part):
            down = [layer.lora_A[name].weight for name in layer.lora_A]
            up = [layer.lora_B[name].weight * layer.scaling[name] for name in layer.lora_A]
            for letter, value in (("A", torch.cat(down)), ("B", torch.cat(up, dim=1))):
                key = f"{NAMES[place]}.{names[id(layer)]}.lora_{letter}.weight"
                state[key] = value.detach().cpu().float().contiguous()
    return state


def find_adapted(restorer: LatentRestorer) -> dict[str, nn.Module]:
    """The parts that may have adapters, by our names."""
    return {name: part for name in NAMES if (part := getattr(restorer, name)) is not None}


def write_folder(restorer: LatentRestorer, folder: Path) -> None:
    """Write everything but the card. The restorer's adapters are merged; it is of no use for training afterwards.

    Args:
        folder: not there yet, or empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if adapters := list_adapters(restorer):
        save_tensors(adapters, folder / ADAPTERS_FILE)
        for part in find_adapted(restorer).values():
            merge_lora(part)
    parts = list_parts(restorer)
    index: dict[str, Any] = {
        "_class_name": ["pipeline", pipeline.FaceRestorationPipeline.__name__],
        "_diffusers_version": diffusers.__version__,
        **read_use(restorer),
    }
    for name, part in parts.items():
        index[name] = [None, None] if part is None else list(write_part(part, folder / name))
    shutil.copyfile(PIPELINE, folder / PIPELINE.name)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def list_parts(restorer: LatentRestorer) -> dict[str, Any]:
    """The pipeline's parts by the names of its arguments."""
    embedding = restorer.encode_prompts([restorer.use.prompt])[0].detach().cpu()
    prompt = FixedPrompt(*embedding.shape)
    prompt.load_state_dict({"embedding": embedding})
    schedule, stage1 = make_schedule("epsilon", False), None
    if isinstance(restorer, DiffusionRestorer):
        schedule = make_schedule(restorer.use.prediction, restorer.use.zero_terminal_snr)
        stage1 = None if restorer.stage1 is None else convert_stage1(restorer.stage1)
    control = None if restorer.control is None else convert_control(restorer.control)
    return {
        "unet": restorer.unet,
        "vae": restorer.vae,
        "scheduler": schedule,
        "prompt": prompt,
        "controlnet": control,
        "stage1": stage1,
    }


def read_use(restorer: LatentRestorer) -> dict[str, Any]:
    """The pipeline's settings: how the restorer is used."""
    use: dict[str, Any] = {"image_size_px": restorer.use.image_size_px, "color_fix": restorer.use.color_fix}
    if isinstance(restorer, OneStepRestorer):
        at = {name: getattr(restorer.use, name) for name in ("timestep", "condition_noise_timestep")}
        return {"kind": "one_step", **at, "finds": "residual" if isinstance(restorer, PisaSR) else "noise", **use}
    names = ("steps", "eta", "start_fraction", "control_scale")
    return {"kind": "diffusion", **use, **{name: getattr(restorer.use, name) for name in names}}


def convert_control(control: ConditionControlNet) -> ControlNetModel:
    """diffusers' own ControlNet of the same numbers, whose hint encoder takes one channel and gives zeros."""
    settings = {name: value for name, value in control.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        plain = ControlNetModel(**{**settings, "conditioning_channels": 1, "conditioning_embedding_out_channels": (1,)})
    zeros = {
        name: torch.zeros(value.shape)
        for name, value in plain.state_dict().items()
        if name.startswith("controlnet_cond_embedding.")
    }
    plain.load_state_dict({**control.state_dict(), **zeros}, strict=True, assign=True)
    return plain


def convert_stage1(stage1: nn.Module) -> ModelMixin:
    """diffusers' own network where stage 1 is the tiny restorer's; else spandrel's SwinIR, as the pipeline wraps it."""
    if isinstance(stage1, Stage1):
        net: UNet2DModel = stage1.net
        return net
    arguments: Mapping[str, Any] = stage1.hyperparameters  # type: ignore[assignment]  # which spandrel keeps
    plain = {name: value for name, value in arguments.items() if not isinstance(value, type)}  # which kind of norm
    wrapped = SwinIRStage(arguments=plain)
    wrapped.net.load_state_dict(stage1.state_dict(), strict=True)
    return wrapped


def write_part(part: Any, folder: Path) -> tuple[str, str]:
    """Write a part; (library, class) under which diffusers finds it.

    A class of the pipeline's file is looked for beside the part's own numbers, so there lies a copy of it.
    """
    part.save_pretrained(folder)
    name = type(part).__name__
    if type(part).__module__ == pipeline.__name__:
        shutil.copyfile(PIPELINE, folder / PIPELINE.name)
        return PIPELINE.stem, name
    return "diffusers", name
