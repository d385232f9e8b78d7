"""Load a restorer by its name: tiny, diffbir-v1, diffbir-v2.1, a one-step one, pmrf, feedforward:FILE, onnx:FILE.

The one-step ones are osediff, hypir, osdface, pisasr and gdpo. Behind a colon stands what to load in place of the
published part: `diffbir-v1:FILE` another ControlNet in DiffBIR's format, `osediff:FILE` (or `hypir:FILE`, …) other
adapters, `feedforward:FILE` any restorer that spandrel knows, `onnx:FILE` a face restorer as ONNX; FILE is a path or a
name of `python -m refl weights list`. A folder is one that training wrote, or a tiny restorer's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import chain
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn

from db.errors import UserError
from refl.published.weights import find_file, get_files
from refl.restorers.diffbir import VERSIONS, list_diffbir_files, load_diffbir, set_steps
from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.feedforward import FeedForwardRestorer, load_feedforward
from refl.restorers.kin import ONE_STEP
from refl.restorers.one_step import OneStepRestorer
from refl.restorers.onnx import OnnxRestorer, check_runtime, load_onnx
from refl.restorers.osediff import load_plain_vae
from refl.restorers.pmrf import PMRF, WEIGHTS, load_pmrf
from refl.restorers.record import TRAINED_FILE, find_base, is_tuned, read_record
from refl.restorers.tiny import load_tiny
from reward.model.weights_folder import WEIGHTS_FOLDER
from training.weights import SUFFIXES

NAMES = ("tiny", *VERSIONS, *ONE_STEP, "pmrf", "feedforward:FILE", "onnx:FILE")
ADAPTERS = "adapters"
"""In `keep_float32`: what a training by LoRA added to the parts."""
ALWAYS_FLOAT32 = ("stage1", "prompt_encoder")
"""Parts: SwinIR makes masks in float32 at sizes it was not made for, and OSDFace's words hang on rounding."""
Untrained = FeedForwardRestorer | OnnxRestorer | PMRF
"""Those that are made of a file and judged, but not trained here."""
AnyRestorer = DiffusionRestorer | OneStepRestorer | Untrained


def load_restorer(
    asked: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    keep_float32: Collection[str] = (),
    weights_dir: Path | None = None,
    steps: int | None = None,
) -> AnyRestorer:
    """A restorer ready to use; in memory are its numbers in `dtype`, and not the files beside them.

    Args:
        asked: see the module.
        dtype: what its parts compute in; images and latents are float32 at the borders.
        keep_float32: parts whose numbers are float32 nonetheless, since they are trained: `control`, `unet`, …, or
            `adapters` for those of a folder that training by LoRA wrote, which then are as stored; what a restorer
            has not is passed over.
        weights_dir: folder of published files; `data/weights` where not given.
        steps: how many it takes where `restore` is told none; None for as many as it was published with.
    Raises:
        UserError: there is no such restorer, a file cannot be got or is not what it should be, or it takes one step.
    """
    folder = weights_dir or Path("data") / WEIGHTS_FOLDER
    restorer = _load(locate(asked), folder, dtype, keep_float32, device)
    if steps is not None and isinstance(restorer, DiffusionRestorer):
        try:
            set_steps(restorer, steps)
        except ValueError as error:
            raise UserError(f"{error}.") from error
    elif steps is not None and isinstance(restorer, PMRF):
        restorer.steps = steps
    elif steps not in (None, 1):
        raise UserError(f"{asked} takes one step, not {steps}. Leave the number of steps out.")
    if isinstance(restorer, OnnxRestorer):
        return restorer
    restorer.to(device)
    if isinstance(restorer, Untrained):
        return restorer
    parts = dict(restorer.named_children())
    for name, part in parts.items():
        if name not in (*ALWAYS_FLOAT32, *keep_float32):
            cast(part, dtype, with_adapters=ADAPTERS not in keep_float32)
    return restorer


def load_target_vae(asked: str, folder: Path) -> AutoencoderKL | None:
    """The autoencoder whose latents are what an image is, where a restorer's own encoder is trained; None elsewhere.

    Raises:
        UserError: a file cannot be got, or is not what it should be.
    """
    base = find_base(asked) or asked
    return load_plain_vae(folder) if base.partition(":")[0] == "osediff" else None


def locate(asked: str) -> str:
    """The same restorer with its path, where it has one, as every folder understands it."""
    kind, colon, file = asked.partition(":")
    if colon and Path(file).expanduser().is_file():
        return f"{kind}:{Path(file).expanduser().resolve()}"
    path = Path(asked).expanduser()
    return str(path.resolve()) if asked not in NAMES and is_restorer_folder(path) else asked


def cast(part: nn.Module, dtype: torch.dtype, *, with_adapters: bool) -> None:
    """Make the floating numbers of a part of this dtype, those of adapters too or as they are."""
    for name, value in chain(part.named_parameters(), part.named_buffers()):
        if value.is_floating_point() and (with_adapters or ".lora_" not in name):
            value.data = value.data.to(dtype)


def get_restorer_files(asked: Iterable[str], weights_dir: Path, besides: Iterable[str] = ()) -> None:
    """See that the files of all these restorers are here, downloaded where they must and can be; none is read.

    Args:
        besides: paths and manifest names of other files that are wanted too.
    Raises:
        UserError: there is no such restorer, or one or more files cannot be got; all are named.
    """
    needed = [files for one in asked for files in _list_files(one)]
    get_files([*needed, *((file,) for file in besides)], weights_dir)


def _list_files(asked: str) -> list[tuple[str, ...]]:
    """For each published file of a restorer, the names or paths of which one will do."""
    kind, _, file = asked.partition(":")
    path = Path(asked).expanduser()
    if asked == "tiny":
        return []
    if kind in VERSIONS and (file or asked == kind):
        return list_diffbir_files(kind, file)
    if kind in ONE_STEP and (file or asked == kind):
        return ONE_STEP[kind].list_files(asked)
    if asked == "pmrf":
        return [(WEIGHTS,)]
    if kind == "feedforward" and file:
        return [(file,)]
    if kind == "onnx" and file:
        check_runtime()
        return [(file,)]
    if (base := find_base(asked)) is not None:
        return [(str(path / TRAINED_FILE),), *_list_files(base)]
    if is_restorer_folder(path):
        return []
    raise _unknown(asked)


def method_name(asked: str) -> str:
    """Name its method: the name with a file's stem in place of its path, a folder's with its last two parts.

    Raises:
        UserError: there is no such restorer.
    """
    kind, _, file = asked.partition(":")
    if is_restorer_folder(path := Path(asked).expanduser().resolve()):
        return re.sub(r"[^\w.+-]+", "-", f"{path.parent.name}-{path.name}")
    if asked in NAMES and not file:
        return asked
    if not file or kind not in (*VERSIONS, *ONE_STEP, "feedforward", "onnx"):
        raise _unknown(asked)
    is_path = "/" in file or Path(file).suffix.lower() in (*SUFFIXES, ".onnx")
    name = re.sub(r"[^\w.+-]+", "-", Path(file).stem if is_path else file)
    if kind == "onnx":  # the same weights as ONNX and as torch's file are two methods
        return name if name.endswith("-onnx") else f"{name}-onnx"
    return name if kind == "feedforward" else f"{kind}-{name}"


def is_restorer_folder(path: Path) -> bool:
    """Whether a training of a restorer wrote it, or it is a tiny restorer's."""
    return is_tuned(path) or ((path / "config.json").is_file() and (path / "model.safetensors").is_file())


def _load(
    asked: str, folder: Path, dtype: torch.dtype, keep_float32: Collection[str], device: torch.device | str
) -> AnyRestorer:
    """The restorer, on the CPU; one of ONNX stays on the device that it is loaded for."""
    kind, _, file = asked.partition(":")
    if asked == "tiny":
        return load_tiny()
    if kind in VERSIONS and (file or asked == kind):
        return load_diffbir(kind, folder, file, dtype, keep_float32)
    if kind in ONE_STEP and (file or asked == kind):
        return ONE_STEP[kind].load(asked, folder, dtype, keep_float32)
    if asked == "pmrf":
        return load_pmrf(folder, dtype)
    if kind == "feedforward" and file:
        return load_feedforward(find_file(file, folder), asked, dtype)
    if kind == "onnx" and file:
        check_runtime()
        return load_onnx(find_file(file, folder), asked, device, dtype)
    path = Path(asked).expanduser()
    if is_tuned(path):
        return _load_tuned(path, folder, dtype, keep_float32)
    if is_restorer_folder(path):
        return load_tiny(path)
    raise _unknown(asked)


def _load_tuned(path: Path, folder: Path, dtype: torch.dtype, keep_float32: Collection[str]) -> AnyRestorer:
    record = read_record(path)
    base = locate(str(record["restorer"]))
    restorer = _load(base, folder, dtype, keep_float32, "cpu")
    if isinstance(restorer, Untrained):
        raise UserError(f"{path}: says that it was trained on {base!r}, which cannot be trained.")
    if record["kind"] == "lora" and ADAPTERS in keep_float32:
        restorer.set_trainable("lora", record["rank"])  # adapters begin in the dtype of their layers
        for parameter in restorer.trainable_parameters():
            parameter.data = parameter.data.float()
    restorer.load_trained(path)
    return restorer.requires_grad_(False)


def _unknown(asked: str) -> UserError:
    return UserError(
        f"There is no restorer {asked!r}. Name one of {', '.join(NAMES)}, or a folder that a training wrote."
    )
