"""The training's measures against loops written out and against scikit-image and pyiqa."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from refl.pretrain.config import PretrainConfig
from refl.pretrain.loss import compute_gmsd, compute_gradient_similarity, compute_psnr, compute_ssim, pixel_loss

CONFIG = PretrainConfig(stage1_steps=1, vae_steps=1, diffusion_steps=1, ssim_weight=0.5, gradient_weight=0.25)


def make_images(size_px: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hq = torch.rand(2, 3, size_px, size_px, generator=generator)
    return (0.7 * hq + 0.3 * torch.rand(hq.shape, generator=generator)).clamp(0, 1), hq


def test_ssim_is_skimages():
    restored, hq = make_images()
    for ours, image, truth in zip(compute_ssim(restored, hq), restored, hq, strict=True):
        _, whole = structural_similarity(
            image.numpy(),
            truth.numpy(),
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        assert float(ours) == pytest.approx(whole[:, 5:-5, 5:-5].mean(), abs=1e-4)


def test_psnr_of_a_known_error():
    hq = torch.zeros(1, 3, 8, 8)
    assert float(compute_psnr(hq + 0.1, hq)) == pytest.approx(20.0, abs=1e-3)


def compute_gmsd_by_hand(restored: np.ndarray, hq: np.ndarray) -> float:
    """Luma, halved by means of 2 × 2, Prewitt with replicated borders, similarity, standard deviation."""

    def magnitude(image: np.ndarray) -> np.ndarray:
        luma = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        height, width = luma.shape[0] // 2, luma.shape[1] // 2
        small = np.array(
            [[luma[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(width)] for i in range(height)]
        )
        padded = np.pad(small, 1, mode="edge")
        found = np.zeros_like(small)
        for i in range(height):
            for j in range(width):
                window = padded[i : i + 3, j : j + 3]
                across = (window[:, 0].sum() - window[:, 2].sum()) / 3
                down = (window[0].sum() - window[2].sum()) / 3
                found[i, j] = math.hypot(across, down)
        return found

    a, b = magnitude(restored), magnitude(hq)
    return float(np.std((2 * a * b + 0.0026) / (a**2 + b**2 + 0.0026)))


def test_gmsd_is_the_formulas():
    restored, hq = make_images(16)
    expected = [compute_gmsd_by_hand(a.numpy(), b.numpy()) for a, b in zip(restored, hq, strict=True)]
    assert compute_gmsd(restored, hq).tolist() == pytest.approx(expected, abs=1e-4)


def test_equal_images_lack_nothing_and_have_a_gradient():
    _, hq = make_images()
    restored = hq.clone().requires_grad_()
    loss = pixel_loss(restored, hq, CONFIG)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    assert bool(restored.grad.isfinite().all())


def test_the_loss_is_its_weighted_parts_in_float32_whatever_surrounds_it():
    restored, hq = make_images()
    parts = (restored - hq).abs().mean()
    parts = parts + 0.5 * (1 - compute_ssim(restored, hq).mean())
    parts = parts + 0.25 * (1 - compute_gradient_similarity(restored, hq).mean())
    with torch.autocast("cpu", torch.bfloat16):
        assert float(pixel_loss(restored, hq, CONFIG)) == pytest.approx(float(parts), abs=1e-6)
