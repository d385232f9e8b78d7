"""A restorer by its name: tiny, diffbir-v1, diffbir-v2.1, osediff, feedforward:FILE, or a folder.

Behind a colon stands what to load in place of the published part: `diffbir-v1:FILE` another ControlNet in DiffBIR's
format, `osediff:FILE` other adapters, `feedforward:FILE` any restorer that spandrel knows; FILE is a path or a name of
`python -m refl weights list`. A folder is one that training wrote, or a tiny restorer's.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from refl.restorers import lora
from refl.restorers.diffbir import VERSIONS, load_diffbir, set_steps
from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.feedforward import FeedForwardRestorer, load_feedforward
from refl.restorers.osediff import OSEDiff, load_osediff
from refl.restorers.tiny import load_tiny
from refl.weights import WEIGHTS_FOLDER, find_file
from runs import UserError

NAMES = ("tiny", *VERSIONS, "osediff", "feedforward:FILE")
AnyRestorer = DiffusionRestorer | OSEDiff | FeedForwardRestorer


def load_restorer(
    asked: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    weights_dir: Path | None = None,
    steps: int | None = None,
) -> AnyRestorer:
    """A restorer ready to use.

    Args:
        asked: see the module.
        dtype: what its parts compute in; images and latents are float32 at the borders.
        weights_dir: folder of published files; `data/weights` where not given.
        steps: how many it takes where `restore` is told none; None for as many as it was published with.
    Raises:
        UserError: there is no such restorer, a file cannot be got or is not what it should be, or it takes one step.
    """
    restorer = _load(asked, weights_dir or Path("data") / WEIGHTS_FOLDER, dtype)
    if steps is not None and isinstance(restorer, DiffusionRestorer):
        try:
            set_steps(restorer, steps)
        except ValueError as error:
            raise UserError(f"{error}.") from error
    elif steps not in (None, 1):
        raise UserError(f"{asked} takes one step, not {steps}. Leave the number of steps out.")
    restorer.to(device)
    if isinstance(restorer, FeedForwardRestorer):
        return restorer
    for name, part in restorer.named_children():
        if name != "stage1":  # small, and SwinIR makes masks in float32 where an image is not of its training's size
            nn.Module.to(part, dtype)  # for diffusers' `to` warns of parts to keep in float32, of which there are none
    return restorer


def method_name(asked: str) -> str:
    """What its method is called: the name with a file's stem in place of its path, a folder's with its last two parts.

    Raises:
        UserError: there is no such restorer.
    """
    kind, _, file = asked.partition(":")
    if is_restorer_folder(path := Path(asked).expanduser().resolve()):
        return re.sub(r"[^\w.+-]+", "-", f"{path.parent.name}-{path.name}")
    if asked in NAMES[:-1]:
        return asked
    if not file or kind not in (*VERSIONS, "osediff", "feedforward"):
        raise _unknown(asked)
    is_path = "/" in file or Path(file).suffix in (".pth", ".pt", ".ckpt", ".pkl", ".safetensors", ".bin")
    name = re.sub(r"[^\w.+-]+", "-", Path(file).stem if is_path else file)
    return name if kind == "feedforward" else f"{kind}-{name}"


def is_restorer_folder(path: Path) -> bool:
    """Whether a training of a restorer wrote it, or it is a tiny restorer's."""
    return (path / "trained.json").is_file() or (
        (path / "config.json").is_file() and (path / "model.safetensors").is_file()
    )


def _load(asked: str, folder: Path, dtype: torch.dtype) -> AnyRestorer:
    kind, _, file = asked.partition(":")
    if asked == "tiny":
        return load_tiny()
    if kind in VERSIONS and (file or asked == kind):
        return load_diffbir(kind, folder, file)
    if kind == "osediff" and (file or asked == kind):
        return load_osediff(asked, folder)
    if kind == "feedforward" and file:
        return load_feedforward(find_file(file, folder), asked, dtype)
    path = Path(asked).expanduser()
    if (path / "trained.json").is_file():
        base = str(lora.read_record(path)["restorer"])
        restorer = _load(base, folder, dtype)
        if isinstance(restorer, FeedForwardRestorer):
            raise UserError(f"{path}: says that it was trained on {base!r}, which cannot be trained.")
        restorer.load_trained(path)
        return restorer.requires_grad_(False)
    if is_restorer_folder(path):
        return load_tiny(path)
    raise _unknown(asked)


def _unknown(asked: str) -> UserError:
    return UserError(
        f"There is no restorer {asked!r}. Name one of {', '.join(NAMES)}, or a folder that a training wrote."
    )
