"""DiffBIR (arXiv:2308.15070) from the published files: Stable Diffusion 2.1, its ControlNet, SwinIR as stage 1.

Version 1's ControlNet for faces, or one tuned from it; and version 2.1, whose denoiser predicts v from zero SNR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
from torch import Tensor, nn

from refl.convert import StableDiffusionState, load_published, select_control, split_checkpoint
from refl.ldm_shapes import make_control, make_text_encoder, make_unet, make_vae, read_unet_shape
from refl.restorers.diffusion import DiffusionRestorer, DiffusionSettings
from refl.text_encoder import TextEncoder
from refl.weights import FoundFile, find_any, find_file
from reward.weights import read_weights
from runs import UserError


@dataclass(frozen=True)
class Version:
    """Which published files make a version, by their names in the manifest, and how it is used."""

    base: tuple[str, ...]
    """Stable Diffusion's, the first that is here."""
    control: str
    stage1: str
    use: DiffusionSettings


STABLE_DIFFUSION = ("sd-2.1-base-safetensors", "sd-2.1-base")
"""Either of the two files, in the manifest."""
UNSAFE_NAME = "v2-1_512-ema-pruned.ckpt"
"""Of the second; copies of it are about that hold a training's objects besides, and then are not read."""
VERSIONS = {
    "diffbir-v1": Version(STABLE_DIFFUSION, "diffbir-v1-face", "diffbir-swinir-face", DiffusionSettings()),
    "diffbir-v2.1": Version(
        ("sd-2.1-zsnr",),
        "diffbir-v2.1",
        "diffbir-swinir-face",
        DiffusionSettings(prediction="v_prediction", zero_terminal_snr=True),
    ),
}
"""Version 1 as DiffusionReward runs it: 50 steps of DDIM with eta 1, no guidance, the wavelet colour fix."""


def load_diffbir(version: str, folder: Path, control: str = "") -> DiffusionRestorer:
    """The restorer, on the CPU in float32.

    Args:
        version: of VERSIONS.
        folder: where weight files lie.
        control: another ControlNet in DiffBIR's format, as a name of the manifest or a path; "" for the version's own.
    Raises:
        UserError: a file cannot be got, or is not what it should be.
    """
    made = VERSIONS[version]
    base = find_any(made.base, folder)
    control_file, stage1_file = find_file(control or made.control, folder), find_file(made.stage1, folder)
    parts = read_stable_diffusion(base)
    control_state = select_control(read_weights(control_file.path))
    shape = read_unet_shape(parts.unet, base.path)
    control_shape = read_unet_shape(control_state, control_file.path)
    if replace(control_shape, in_channels=shape.in_channels) != shape:
        raise UserError(f"{control_file.path}: not a ControlNet of {base.path.name}: their widths or depths differ.")
    with torch.device("meta"):  # so that no number is drawn that a file will overwrite
        unet, vae = make_unet(shape), make_vae(parts.vae, base.path)
        net = make_control(shape, control_shape.in_channels)
    load_published(unet, parts.unet, base.path)
    load_published(vae, parts.vae, base.path)
    load_published(net, control_state, control_file.path)
    text, stage1 = load_text_encoder(parts, base), load_stage1(read_weights(stage1_file.path), stage1_file.path)
    name = f"{version}:{control}" if control else version
    weights = {found.path.name: found.sha256 for found in (base, control_file, stage1_file)}
    restorer = DiffusionRestorer(unet, net, vae, made.use, text=text, stage1=stage1, base=name, weights=weights)
    return restorer.eval().requires_grad_(False)


def read_stable_diffusion(base: FoundFile) -> StableDiffusionState:
    """The models of a checkpoint.

    Raises:
        UserError: it cannot be read, or is another kind of file.
    """
    try:
        state = read_weights(base.path)
    except UserError as error:
        if base.path.name != UNSAFE_NAME:
            raise
        hint = f"The same numbers as safetensors: python -m refl weights fetch {STABLE_DIFFUSION[0]}"
        raise UserError(f"{error} {hint}") from error
    return split_checkpoint(state, base.path)


def load_text_encoder(parts: StableDiffusionState, base: FoundFile) -> TextEncoder:
    """Stable Diffusion's text encoder."""
    with torch.device("meta"):
        text = make_text_encoder(parts.text, base.path)
    load_published(text, parts.text, base.path)
    return text


def load_stage1(state: Mapping[str, Tensor], source: Path | str) -> nn.Module:
    """DiffBIR's SwinIR: pixels in [0, 1] to pixels of the same size, not clamped; sides multiples of 64.

    Raises:
        UserError: it is no SwinIR.
    """
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        descriptor = ModelLoader().load_from_state_dict(plain)
    except (UnsupportedModelError, RuntimeError, KeyError) as error:
        line = str(error).replace("\n", " ")[:200]
        raise UserError(f"{source}: not the weights of DiffBIR's SwinIR: {line}") from error
    if (
        descriptor.architecture.id != "SwinIR"
        or not isinstance(descriptor, ImageModelDescriptor)
        or descriptor.scale != 1
    ):
        raise UserError(
            f"{source}: a {descriptor.architecture.name}, not DiffBIR's SwinIR, which keeps an image's size."
        )
    model: nn.Module = descriptor.model.eval()  # spandrel leaves it in training mode, with parts dropped at random
    return model


def set_steps(restorer: DiffusionRestorer, steps: int) -> None:
    """Let it take this many steps where none are named.

    Raises:
        ValueError: the schedule has not so many.
    """
    restorer.plan_steps(steps)
    restorer.use = replace(restorer.use, steps=steps)
