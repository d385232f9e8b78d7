"""Write the first weights of the reward models of `experiments.reward_worth`: a small tower whose stem whitens patches.

From random weights 300 steps learn little of texture, whose fine bands are weak beside the coarse ones. A stem that
whitens patches of the training faces gives every band the same say from the start, as fast trainings of small image
networks have it (David Page, "How to train your ResNet", 2019).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.loop import SIZE_PX
from experiments.worth_taste import to_luma
from reward.model.checkpoint import build_model, save_model
from reward.model.config import FOLDER, ModelConfig, load_model_config
from reward.model.model import preprocess

PATCH_PX, WIDTH, LAYERS = 8, 96, 2
LEAST_VARIANCE = 1e-3
"""Added to a component's variance: finer ones than 8 bits show are not raised."""
SIZE = 0.5
"""Standard deviation of the whitened components."""


def write_first_model(folder: Path, faces: Tensor, text_mode: str, members: int, seed: int) -> ModelConfig:
    """Write an architecture for 64 px and first weights into a folder; returns the config that names them.

    Args:
        faces: (N, 3, 64, 64) RGB in [0, 1] of the train split.
    """
    architecture = json.loads((FOLDER / "tiny.json").read_text(encoding="utf-8"))
    architecture["vision_cfg"] |= {"patch_size": PATCH_PX, "width": WIDTH, "layers": LAYERS}
    (folder / "architecture.json").write_text(json.dumps(architecture), encoding="utf-8")
    fields = {"architecture": str(folder / "architecture.json"), "image_size_px": SIZE_PX}
    config = load_model_config("tiny", **fields, unlocked_image_groups=LAYERS + 2, text_mode="fixed")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(config)
    with torch.no_grad():
        stem = model.clip.visual.conv1.weight
        stem.copy_(whiten(preprocess(faces, config), stem.shape[0]))
    save_model(model, folder / "first")
    weights = str(folder / "first" / "model.safetensors")
    return config.model_copy(update={"weights": weights, "text_mode": text_mode, "members": members})


def whiten(pixels: Tensor, width: int) -> Tensor:
    """(width, 3, P, P) filters that whiten patches: two thirds of the width for luma, the rest for two chromas.

    Args:
        pixels: (N, 3, S, S) as the tower takes them.
    """
    patches = F.unfold(pixels, PATCH_PX, stride=PATCH_PX // 2).transpose(1, 2).reshape(-1, 3, PATCH_PX, PATCH_PX)
    luma = to_luma(patches)
    of_luma = _principal(luma.flatten(1), min(PATCH_PX**2, 2 * width // 3))
    of_chroma = _principal((patches[:, ::2] - luma).flatten(1), width - len(of_luma))
    share = pixels.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    chroma = of_chroma.view(-1, 2, PATCH_PX, PATCH_PX)
    red_and_blue = torch.stack([chroma[:, 0], torch.zeros_like(chroma[:, 0]), chroma[:, 1]], dim=1)
    filters = [
        of_luma.view(-1, 1, PATCH_PX, PATCH_PX) * share,
        red_and_blue - chroma.sum(dim=1, keepdim=True) * share,
    ]
    return torch.cat(filters) * SIZE


def _principal(values: Tensor, count: int) -> Tensor:
    """(count, D) rows that make the first principal components of (N, D) values alike in variance."""
    centred = values - values.mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    found: Tensor = (directions / (variances + LEAST_VARIANCE).sqrt()).T.flip(0)[:count]
    return found
