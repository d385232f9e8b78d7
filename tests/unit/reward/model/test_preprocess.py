"""The one way of an image into CLIP equals HPSv2's transform and lets gradients through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

transforms = pytest.importorskip("torchvision.transforms", reason="needs torchvision: `make install`")

from reward.model.config import load_model_config  # noqa: E402
from reward.model.model import preprocess  # noqa: E402

CONFIG = load_model_config("vit-h-14")
PUBLISHED_REFL = CONFIG.model_copy(update={"interpolation": "bilinear", "antialias": False})
SIZES = [(512, 512), (300, 512), (512, 201), (100, 100), (90, 60), (224, 224), (224, 150)]
"""(height, width): faces of ours, wide, tall, small ones, and such as need no resizing."""


def photo(size, seed=0):
    """A face-like image: smooth with noise, its edges hard."""
    height, width = size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([127 + 120 * np.sin(x / (9 + c) + c) * np.cos(y / 13) for c in range(3)], axis=-1)
    smooth[height // 4 : height // 2, width // 3 : width // 2] = 255
    return PilImage.fromarray(np.clip(smooth + rng.normal(0, 10, smooth.shape), 0, 255).astype(np.uint8))


def to_tensor(image):
    return transforms.ToTensor()(image)[None]


def hpsv2_transform(image, size_px=224):
    """HPSv2's steps for scoring and training: to tensor, longest side bicubic, centre on black, normalise."""
    functional = transforms.functional
    tensor = transforms.ToTensor()(image.convert("RGB"))
    scale = size_px / max(tensor.shape[1:])
    new = [round(side * scale) for side in tensor.shape[1:]]
    tensor = functional.resize(tensor, new, transforms.InterpolationMode.BICUBIC, antialias=True)
    up, left = (size_px - new[0]) // 2, (size_px - new[1]) // 2
    tensor = functional.pad(tensor, [left, up, size_px - new[1] - left, size_px - new[0] - up], fill=0)
    return functional.normalize(tensor, CONFIG.mean, CONFIG.std)[None]


@pytest.mark.parametrize("size", SIZES)
def test_it_equals_hpsv2s_transform_of_a_pil_image(size):
    image = photo(size)
    ours = preprocess(to_tensor(image), CONFIG)
    assert ours.shape == (1, 3, 224, 224)
    torch.testing.assert_close(ours, hpsv2_transform(image), atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [(512, 512), (100, 100)])
def test_pillows_own_bicubic_is_within_a_few_grey_levels(size):
    """open_clip resizes before it makes a tensor: Pillow rounds twice and cuts off what overshoots at edges."""
    image = photo(size)
    resized = to_tensor(image.resize((224, 224), PilImage.Resampling.BICUBIC))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CONFIG.mean, CONFIG.std))
    ours = (preprocess(to_tensor(image), CONFIG) * std + mean).clamp(0, 1)
    assert (ours - resized).abs().max() < 8 / 255
    assert (ours - resized).abs().mean() < 0.5 / 255


def test_the_published_refl_is_bilinear_without_antialiasing():
    image = to_tensor(photo((512, 512)))
    resized = transforms.functional.resize(image, [224, 224], antialias=False)
    expected = transforms.functional.normalize(resized, CONFIG.mean, CONFIG.std)
    torch.testing.assert_close(preprocess(image, PUBLISHED_REFL), expected, atol=2e-6, rtol=0)
    assert (preprocess(image, CONFIG) - expected).abs().max() > 0.1  # the setting matters


@pytest.mark.parametrize("config", [CONFIG, PUBLISHED_REFL], ids=["as trained", "as in ReFL"])
def test_gradients_reach_the_pixels(config):
    small = config.model_copy(update={"image_size_px": 16})
    images = torch.rand(1, 3, 23, 19, dtype=torch.float64) * 0.8 + 0.1
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: preprocess(x, small), images, fast_mode=True)


def test_with_antialiasing_every_pixel_gets_a_gradient():
    counts = {}
    for config in (CONFIG, PUBLISHED_REFL):
        images = (torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05).requires_grad_()
        (preprocess(images, config) ** 2).sum().backward()
        counts[config.antialias] = (images.grad != 0).double().mean().item()
    assert counts[True] > 0.999
    assert counts[False] < 0.9  # two thirds, or so: the others are skipped over


def test_what_overshoots_is_clamped_as_published():
    images = torch.rand(1, 3, 64, 64) * 3 - 1
    assert torch.equal(preprocess(images, CONFIG), preprocess(images.clamp(0, 1), CONFIG))


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 8, 8), torch.zeros(1, 8, 8, 3), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
    ids=["no batch", "channels last", "bytes"],
)
def test_other_tensors_are_refused(images):
    with pytest.raises(ValueError, match=r"not \(B, 3, H, W\) floating RGB"):
        preprocess(images, CONFIG)
