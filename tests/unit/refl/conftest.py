"""Make restorers of a few thousand random weights, and faces of a size at which a training step takes milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage

torch = pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("diffusers", reason="needs diffusers: `make install`")

from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402

from refl.published.shapes import UNetShape, make_unet  # noqa: E402
from refl.restorers.diffusion import DiffusionRestorer  # noqa: E402
from refl.restorers.kin import ONE_STEP  # noqa: E402
from refl.restorers.one_step import OneStepRestorer, OneStepSettings  # noqa: E402
from refl.restorers.osediff import OSEDiff  # noqa: E402
from refl.restorers.tiny import LearnedPrompt, make_tiny  # noqa: E402
from refl.restorers.tiny_config import TinyConfig  # noqa: E402
from refl.tune.data import Face, find_faces  # noqa: E402
from reward.model.checkpoint import build_model  # noqa: E402
from reward.model.config import ModelConfig  # noqa: E402
from reward.model.model import RewardModel  # noqa: E402

MICRO = TinyConfig(
    image_size_px=16,
    stage1_channels=(8, 8, 8),
    vae_channels=(8, 8, 8),
    latent_channels=4,
    unet_channels=(8, 8, 8),
    norm_groups=4,
    prompt_tokens=2,
    prompt_channels=8,
    steps=4,
    start_fraction=0.5,
)
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def make_micro_reward(folder: Path, **fields: Any) -> RewardModel:
    """Random weights; sees images of 16 × 16. The folder gets the file that tells its architecture."""
    (folder / "micro.json").write_text(json.dumps(CLIP))
    torch.manual_seed(0)
    settings = {"unlocked_image_groups": 3, "unlocked_text_blocks": 0, "text_mode": "learned", **fields}
    return build_model(ModelConfig(architecture=str(folder / "micro.json"), image_size_px=16, **settings))


def make_micro_restorer(seed: int = 0) -> DiffusionRestorer:
    """Random weights, the ControlNet's outputs too, which would be 0 at the start of its training."""
    torch.manual_seed(seed)
    restorer = make_tiny(MICRO)
    with torch.no_grad():
        for parameter in restorer.control.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return restorer.requires_grad_(False)


def make_micro_osediff() -> OSEDiff:
    """Random weights; restores 32 × 32 images in one step."""
    use = OneStepSettings(image_size_px=32)
    return OSEDiff(*make_micro_parts(), LearnedPrompt(2, 8), use, base="osediff").eval()


def make_micro_one_step(kind: str) -> OneStepRestorer:
    """Another one-step restorer of the same size; its own adapters change something."""
    rank = {"rank": 2} if kind in ("hypir", "pisasr") else {}
    made = ONE_STEP[kind].build(*make_micro_parts(), LearnedPrompt(2, 8), **rank).eval()
    made.use = replace(made.use, image_size_px=32)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return made.requires_grad_(False)


def make_micro_parts() -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """Denoiser and autoencoder of random weights."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
    )
    unet = make_unet(UNetShape((32, 32), 1, (2, 2), (True, False), 1, 8))
    return unet, vae


@pytest.fixture
def micro_restorer() -> DiffusionRestorer:
    """Restores 16 × 16 images, badly."""
    return make_micro_restorer()


@pytest.fixture
def faces(tmp_path: Path) -> list[Face]:
    """Eight smooth colourful images, 20 px; two have captions."""
    return write_faces(tmp_path / "faces")


def write_faces(folder: Path, count: int = 8) -> list[Face]:
    folder.mkdir()
    for seed in range(count):
        small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        PilImage.fromarray(cv2.resize(small, (20, 20), interpolation=cv2.INTER_CUBIC)).save(folder / f"{seed}.png")
    (folder / "0.txt").write_text("a blue face\n")
    (folder / "1.txt").write_text("a red face")
    return find_faces(folder)


@pytest.fixture(scope="session")
def micro() -> TinyConfig:
    """The smallest tiny restorer: 16 × 16 images, 3 latent channels."""
    changes = {"stage1_channels": (4, 4, 8), "vae_channels": (4, 4, 8), "latent_channels": 3, "vae_norm_groups": 2}
    return MICRO.model_copy(update={**changes, "start_fraction": TinyConfig().start_fraction})


@pytest.fixture
def make_micro(micro: TinyConfig) -> Callable[..., DiffusionRestorer]:
    """`make_micro(eta=1.0)`: always the same weights; the ControlNet's outputs are not zero."""

    def make(**changes: object) -> DiffusionRestorer:
        torch.manual_seed(0)
        restorer = make_tiny(micro.model_copy(update=changes))
        with torch.no_grad():
            for convolution in [*restorer.control.controlnet_down_blocks, restorer.control.controlnet_mid_block]:
                torch.nn.init.normal_(convolution.weight, std=0.3)
        return restorer

    return make
