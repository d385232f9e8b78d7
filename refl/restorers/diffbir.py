"""Load DiffBIR (arXiv:2308.15070) from the published files: Stable Diffusion 2.1, its ControlNet, SwinIR as stage 1.

Version 1's ControlNet for faces, or one tuned from it; and version 2.1, whose denoiser predicts v from zero SNR.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from spandrel import ImageModelDescriptor
from torch import Tensor, nn

from db.errors import UserError
from refl.published.control import ConditionControlNet
from refl.published.convert import (
    StableDiffusionState,
    check_published,
    load_published,
    select_control,
    split_checkpoint,
)
from refl.published.shapes import UNetShape, make_control, make_text_encoder, make_unet, make_vae, read_unet_shape
from refl.published.text_encoder import TextEncoder
from refl.published.weights import FoundFile, find_any, find_file, get_files
from refl.restorers.diffusion import DiffusionRestorer, DiffusionSettings
from refl.restorers.feedforward import load_architecture
from training.weights import State, map_weights, read_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """Published files of a version, by their names in the manifest, and its settings."""

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


def list_diffbir_files(version: str, control: str = "") -> list[tuple[str, ...]]:
    """For each file that `load_diffbir` takes, the names or paths of which one will do."""
    made = VERSIONS[version]
    return [made.base, (control or made.control,), (made.stage1,)]


def load_diffbir(
    version: str,
    folder: Path,
    control: str = "",
    dtype: torch.dtype = torch.float32,
    keep_float32: Collection[str] = (),
) -> DiffusionRestorer:
    """The restorer, on the CPU; all keys and shapes are checked before the numbers are read.

    Args:
        version: of VERSIONS.
        folder: where weight files lie.
        control: another ControlNet in DiffBIR's format, as a name of the manifest or a path; "" for the version's own.
        dtype: what the parts' numbers become as they are read; stage 1's stay float32.
        keep_float32: parts that are float32 nonetheless.
    Raises:
        UserError: a file cannot be got, or is not what it should be.
    """
    made = VERSIONS[version]
    get_files(list_diffbir_files(version, control), folder)
    base = find_any(made.base, folder)
    control_file, stage1_file = find_file(control or made.control, folder), find_file(made.stage1, folder)
    parts = make_stable_diffusion(base)
    net = make_control_of(parts, base, control_file)
    dtypes = choose_dtypes(dtype, keep_float32)
    control_dtype = dtypes.pop("control")
    fill_stable_diffusion(parts, base, dtypes)
    choose_control = partial(select_control, source=control_file.path)
    load_published(net, read_weights(control_file.path, control_dtype, choose_control), control_file.path)
    stage1 = load_stage1(read_weights(stage1_file.path), stage1_file.path)
    name = f"{version}:{control}" if control else version
    weights = {found.path.name: found.sha256 for found in (base, control_file, stage1_file)}
    restorer = DiffusionRestorer(
        parts.unet, net, parts.vae, made.use, text=parts.text, stage1=stage1, base=name, weights=weights
    )
    return restorer.eval().requires_grad_(False)


def choose_dtypes(dtype: torch.dtype, keep_float32: Collection[str]) -> dict[str, torch.dtype]:
    """The dtype of each part that is read from a large file."""
    return {name: torch.float32 if name in keep_float32 else dtype for name in ("unet", "vae", "text", "control")}


@dataclass(frozen=True)
class StableDiffusion:
    """The models of a checkpoint, on the meta device until `fill_stable_diffusion`."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: TextEncoder
    shape: UNetShape


def make_stable_diffusion(base: FoundFile) -> StableDiffusion:
    """The models of a checkpoint, of whose file only the keys and shapes are read.

    Raises:
        UserError: it cannot be read, or is another kind of file.
    """
    found = map_stable_diffusion(base)
    if found.extra:
        log.info("%s: %d entries besides the weights (schedule, EMA) are not used", base.path, found.extra)
    shape = read_unet_shape(found.unet, base.path)
    with torch.device("meta"):  # so that no number is drawn that the file will overwrite
        made = StableDiffusion(
            make_unet(shape), make_vae(found.vae, base.path), make_text_encoder(found.text, base.path), shape
        )
    for model, state in ((made.unet, found.unet), (made.vae, found.vae), (made.text, found.text)):
        check_published(model, state, base.path)
    return made


def fill_stable_diffusion(parts: StableDiffusion, base: FoundFile, dtypes: Mapping[str, torch.dtype]) -> None:
    """Read the numbers of the models that are named, `unet`, `vae` or `text`, one after another, each in its dtype."""
    chosen: dict[str, tuple[nn.Module, Callable[[StableDiffusionState], State]]] = {
        "unet": (parts.unet, lambda found: found.unet),
        "vae": (parts.vae, lambda found: found.vae),
        "text": (parts.text, lambda found: found.text),
    }
    for name, dtype in dtypes.items():
        model, choose = chosen[name]
        state = read_weights(base.path, dtype, partial(_choose_of, choose, base.path))
        load_published(model, state, base.path)


def _choose_of(choose: Callable[[StableDiffusionState], State], path: Path, state: State) -> State:
    return choose(split_checkpoint(state, path))


def make_control_of(parts: StableDiffusion, base: FoundFile, file: FoundFile) -> ConditionControlNet:
    """The ControlNet of a file, on the meta device, checked to be of this Stable Diffusion.

    Raises:
        UserError: it cannot be read, or is of another one.
    """
    state = select_control(map_weights(file.path), file.path)
    shape = read_unet_shape(state, file.path)
    if replace(shape, in_channels=parts.shape.in_channels) != parts.shape:
        raise UserError(f"{file.path}: not a ControlNet of {base.path.name}: their widths or depths differ.")
    with torch.device("meta"):
        net = make_control(parts.shape, shape.in_channels)
    check_published(net, state, file.path)
    return net


def map_stable_diffusion(base: FoundFile) -> StableDiffusionState:
    """The tensors of a checkpoint, of which none is read.

    Raises:
        UserError: it cannot be read, or is another kind of file.
    """
    try:
        state = map_weights(base.path)
    except UserError as error:
        if base.path.name != UNSAFE_NAME:
            raise
        hint = f"The same numbers as safetensors: python -m refl weights fetch {STABLE_DIFFUSION[0]}"
        raise UserError(f"{error} {hint}") from error
    return split_checkpoint(state, base.path)


def load_stage1(state: Mapping[str, Tensor], source: Path | str) -> nn.Module:
    """DiffBIR's SwinIR: pixels in [0, 1] to pixels of the same size, not clamped; sides multiples of 64.

    Raises:
        UserError: it is not a SwinIR.
    """
    try:
        descriptor = load_architecture(state, source)
    except UserError as error:
        raise UserError(f"{error} DiffBIR's SwinIR is wanted here.") from error
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
