"""Write weight files at full size with random numbers, in the published formats and under the published names.

Keys and shapes are the published ones, of `../shared/golden/published_shapes.json`; the numbers are drawn so that
activations stay finite in bfloat16, and restore nothing. A `weights.toml` beside the files says what they are, with
their own checksums, so that `--weights FOLDER` finds them by the published names and nothing goes unchecked.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from math import log as natural_log
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor

from db.errors import UserError
from metrics.download import compute_sha256
from refl.published.convert import UNET, VAE, select
from refl.published.manifest import read_manifest
from refl.published.shapes import make_unet, make_vae, read_unet_shape
from refl.restorers.osediff_lora import (
    ENCODER,
    MODULES,
    PUBLISHED_ALPHA,
    add_adapters,
    group_layers,
    list_encoder_layers,
)
from reward.model.manifest import FOLDER_MANIFEST, WeightsEntry

log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
PUBLISHED_SHAPES = Path(__file__).resolve().parents[2] / "shared" / "golden" / "published_shapes.json"
STABLE_DIFFUSION, CONTROL, SWINIR, REWARD = (
    "v2-1_512-ema-pruned.ckpt",
    "v1_face.pth",
    "face_swinir_v1.ckpt",
    "FaceRewardModel.pth",
)
"""Of what the shapes are known."""
TABLES = ("token_embedding.weight", "positional_embedding", "class_embedding", "relative_position_bias_table")
TABLE_STD = 0.02
ZERO_CONVOLUTIONS = ("zero_convs.", "middle_block_out.")
SMALL = 0.1
"""Factor on what starts at zero in training, so that it shows but does not rule."""
ADAPTER_RANK = 4
PAGE = "https://github.com (none: written by `python -m experiments.rehearse`)"
LICENCE = "CC0: random numbers"


def read_shapes(path: Path = PUBLISHED_SHAPES) -> dict[str, Shapes]:
    """Keys and shapes of the published files, by file name.

    Raises:
        UserError: the list is not there, or lacks a file.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is not there: the keys and shapes of the published files. Name the file with --shapes."
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    missing = [name for name in (STABLE_DIFFUSION, CONTROL, SWINIR, REWARD) if name not in content]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}. Give the whole list.")
    return {name: {key: tuple(shape) for key, shape in table.items()} for name, table in content.items()}


def list_makers(shapes: Mapping[str, Shapes]) -> dict[str, Callable[[], Any]]:
    """Name in a manifest -> what makes that file's content; made one at a time, for each is some GB."""
    base, control = shapes[STABLE_DIFFUSION], shapes[CONTROL]
    return {
        "sd-2.1-base-safetensors": lambda: draw_state(base, seed=1),
        "sd-2.1-zsnr": lambda: {"state_dict": draw_state(base, seed=2, dtype=torch.float16)},
        "diffbir-v1-face": lambda: draw_state(control, seed=3),
        "diffbir-v2.1": lambda: draw_state(control, seed=4),
        "diffbir-swinir-face": lambda: {"state_dict": draw_swinir(shapes[SWINIR], seed=5)},
        "osediff-face": lambda: draw_adapters(base, seed=6),
        "face-reward-model": lambda: {"state_dict": draw_state(shapes[REWARD], seed=7)},
    }


def write_files(folder: Path, shapes: Mapping[str, Shapes]) -> list[Path]:
    """Write every file that is not there yet, and the `weights.toml` that names them; gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    published, entries = read_manifest(), {}
    for name, make in list_makers(shapes).items():
        path = folder / published[name].file
        if not path.is_file():
            log.info("writing %s", path)
            write_whole(path, make())
        entries[name] = WeightsEntry(
            file=path.name,
            description=f"RANDOM NUMBERS in the format of {name}",
            page=PAGE,
            licence=LICENCE,
            sha256=compute_sha256(path),
            size_bytes=path.stat().st_size,
        )
    manifest = "\n".join(format_entry(name, entry) for name, entry in entries.items())
    (folder / FOLDER_MANIFEST).write_text(manifest, encoding="utf-8")
    return [folder / entry.file for entry in entries.values()]


def write_whole(path: Path, content: Any) -> None:
    """By the format of its suffix; a file is there whole or not at all."""
    unfinished = path.with_name(f"{path.name}.part")
    if path.suffix == ".safetensors":
        save_file(content, unfinished)
    else:
        torch.save(content, unfinished)
    unfinished.replace(path)


def format_entry(name: str, entry: WeightsEntry) -> str:
    """A table of a manifest; JSON's strings and numbers are TOML's too."""
    values = {key: value for key, value in entry.model_dump().items() if value}
    return "\n".join([f"[{json.dumps(name)}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""])


def draw_state(shapes: Shapes, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Tensor]:
    """Random numbers of these shapes, the same for the same seed; on the device "meta" shapes alone."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return {name: draw(name, shape).to(dtype) for name, shape in shapes.items()}


def draw(name: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor: norms are 1, biases 0, matrices keep the size of what goes through them."""
    if not shape:
        return torch.full((), natural_log(100))  # the only single numbers are logit scales
    if name.endswith(("bias", "in_proj_bias")):
        return torch.zeros(shape)
    if name.endswith(TABLES):
        return TABLE_STD * torch.randn(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    is_product_from_left = name.endswith(("text_projection", "visual.proj"))  # x @ weight, and not weight @ x
    fan_in = shape[0] if is_product_from_left else prod(shape[1:])
    factor = SMALL if any(part in name for part in ZERO_CONVOLUTIONS) else 1.0
    drawn: Tensor = torch.randn(shape) * (factor * float(fan_in) ** -0.5)
    return drawn


def draw_swinir(shapes: Shapes, seed: int, device: str = "cpu") -> dict[str, Tensor]:
    """DiffBIR's stage 1; the places and masks of its windows are those that its class computes."""
    layers = {key.split(".")[1] for key in shapes if key.startswith("layers.")}
    blocks = {key.split(".")[4] for key in shapes if key.startswith("layers.0.residual_group.blocks.")}
    width = shapes["conv_first.1.weight"][0]
    model = SwinIR(
        img_size=64,
        embed_dim=width,
        depths=[len(blocks)] * len(layers),
        num_heads=[shapes["layers.0.residual_group.blocks.0.attn.relative_position_bias_table"][1]] * len(layers),
        window_size=8,
        mlp_ratio=shapes["layers.0.residual_group.blocks.0.mlp.fc1.weight"][0] / width,
        upscale=8,
        upsampler="nearest+conv",
        start_unshuffle=8,
    )
    computed = {name: value.to(device) for name, value in model.named_buffers()}
    drawn = draw_state({name: shape for name, shape in shapes.items() if name not in computed}, seed, device=device)
    return {name: computed[name] if name in computed else drawn[name] for name in shapes}


def draw_adapters(base: Shapes, seed: int, rank: int = ADAPTER_RANK, device: str = "cpu") -> dict[str, Any]:
    """Draw what OSEDiff's `save_model` writes: lists of layers, ranks, and tensors by name, on this Stable Diffusion.

    Args:
        base: shapes of a Stable Diffusion checkpoint.
    """
    state = draw_state(base, seed, device="meta")
    with torch.device("meta"):
        unet, vae = make_unet(read_unet_shape(select(state, UNET), "shapes")), make_vae(select(state, VAE), "shapes")
    groups, layers = group_layers(unet), list_encoder_layers(vae)
    add_adapters(unet, groups, rank, PUBLISHED_ALPHA)
    add_adapters(vae, {ENCODER: layers}, rank, PUBLISHED_ALPHA)
    drawn = []
    for part, marks in ((unet, ("lora", "conv_in")), (vae, ("lora",))):
        kept = {key: tuple(v.shape) for key, v in part.state_dict().items() if any(mark in key for mark in marks)}
        tensors = draw_state(kept, seed, device=device)
        drawn.append({key: value * SMALL if ".lora_B." in key else value for key, value in tensors.items()})
    return {
        **{key: groups[group] for group, key in MODULES.items()},
        "vae_lora_encoder_modules": layers,
        "rank_unet": rank,
        "rank_vae": rank,
        "state_dict_unet": drawn[0],
        "state_dict_vae": drawn[1],
    }
