"""A restorer of a few thousand random weights, every part of which counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("diffusers", reason="needs diffusers: `make install`")

from refl.restorers.diffusion import DiffusionRestorer  # noqa: E402
from refl.restorers.tiny import make_tiny  # noqa: E402
from refl.restorers.tiny_config import TinyConfig  # noqa: E402


@pytest.fixture(scope="session")
def micro() -> TinyConfig:
    """The smallest tiny restorer: 16 × 16 images, 3 latent channels."""
    return TinyConfig(
        image_size_px=16,
        stage1_channels=(4, 4, 8),
        vae_channels=(4, 4, 8),
        latent_channels=3,
        unet_channels=(8, 8, 8),
        norm_groups=4,
        vae_norm_groups=2,
        prompt_tokens=2,
        prompt_channels=8,
        steps=4,
    )


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
