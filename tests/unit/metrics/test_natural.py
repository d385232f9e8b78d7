"""Our measures on pictures whose noise, blur, blocks and colours are known."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from metrics.natural import MEASURES, split_planes


@pytest.fixture
def photo():
    """(192, 256, 3): smooth ground with edges, as a photo has."""
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (256, 192), interpolation=cv2.INTER_CUBIC)
    cv2.circle(coarse, (100, 90), 40, (220, 180, 160), -1)
    return coarse


def measure(name, rgb):
    return MEASURES[name](split_planes(rgb))


def test_noise_level_is_the_logarithm_of_the_noise_added():
    rng = np.random.default_rng(0)
    for noise_std in (2.0, 8.0):
        # One noise for the three channels, so that the luma's noise is the channels'.
        grey = np.clip(128 + rng.normal(0, noise_std, (256, 256, 1)), 0, 255).round().astype(np.uint8)
        assert measure("noise_level", np.repeat(grey, 3, axis=2)) == pytest.approx(math.log(noise_std), abs=0.05)


def test_blur_lowers_what_measures_detail(photo):
    noisy = np.clip(photo + np.random.default_rng(1).normal(0, 6, photo.shape), 0, 255).astype(np.uint8)
    blurred = cv2.GaussianBlur(noisy, (0, 0), 1.5)
    for name in ("noise_level", "sharpness", "spectrum_slope"):
        assert measure(name, blurred) < measure(name, noisy)
    assert measure("mscn_correlation", blurred) > measure("mscn_correlation", noisy)


def test_the_spectrum_slope_of_white_noise_is_flat():
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 1), dtype=np.uint8)
    assert measure("spectrum_slope", np.repeat(noise, 3, axis=2)) == pytest.approx(0, abs=0.05)


def test_kurtosis_and_correlation_of_independent_gaussian_values():
    planes = split_planes(np.zeros((256, 256, 3), np.uint8))
    mscn = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    assert MEASURES["mscn_kurtosis"](replace(planes, mscn=mscn)) == pytest.approx(math.log(3), abs=0.02)
    assert MEASURES["mscn_correlation"](replace(planes, mscn=mscn)) == pytest.approx(0, abs=0.02)


def test_blockiness_finds_the_blocks_wherever_they_begin(photo):
    blocks = cv2.imdecode(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 5])[1], cv2.IMREAD_COLOR)
    assert measure("blockiness", blocks) > measure("blockiness", photo) + 0.5
    assert measure("blockiness", np.ascontiguousarray(blocks[3:, 5:])) == pytest.approx(
        measure("blockiness", blocks), rel=0.1
    )


def test_edge_ratio_is_higher_for_hard_edges_on_smooth_ground(photo):
    noise = np.random.default_rng(0).integers(0, 256, photo.shape, dtype=np.uint8)
    assert measure("edge_ratio", photo) > measure("edge_ratio", noise)


def test_colours_and_contrast_by_hand():
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:, 32:] = 200
    assert measure("contrast", halves) == pytest.approx(100, abs=1e-3)
    assert measure("colourfulness", halves) == pytest.approx(0, abs=1e-3)
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 200
    # rg = 200, yb = 100 everywhere: no spread, 0.3 of the distance from grey.
    assert measure("colourfulness", red) == pytest.approx(0.3 * math.hypot(200, 100), rel=1e-5)


@pytest.mark.parametrize("name", sorted(MEASURES))
@pytest.mark.parametrize("shape", [(16, 16), (33, 41), (192, 256)])
def test_every_measure_is_finite_on_flat_and_small_images(name, shape):
    assert math.isfinite(measure(name, np.full((*shape, 3), 130, np.uint8)))
    assert math.isfinite(measure(name, np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)))
