"""The detectors see what users show, at every size, and say nothing of faces that have nothing of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from refl.tune.detectors import DETECTORS, MIN_GRID, compute_grid, compute_texture
from refl.tune.verdict import FAMILIES, LEAST_EFFECTS
from training.images import read_image

LEVEL = 1 / 255


def make_faces(side_px: int, seed: int = 0) -> Tensor:
    """(4, 3, S, S) noise whose power falls with the square of the frequency, as that of photos does."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side_px)[:, None], np.fft.fftfreq(side_px))
    spectrum = np.fft.fft2(rng.normal(size=(4, side_px, side_px))) / np.maximum(frequency, 1 / side_px)
    plane = np.fft.ifft2(spectrum).real
    plane = 0.5 + 0.12 * (plane - plane.mean()) / plane.std()
    return torch.from_numpy(np.repeat(plane[:, None], 3, axis=1)).float().clamp(0, 1)


def plant(images: Tensor, period_px: int, levels: float) -> Tensor:
    """Darken each period's first row and column, as a decoder's seams do; `levels` root mean square, of 255."""
    places = torch.arange(images.shape[-1]) % period_px == 0
    pattern = (places[:, None] | places).float()
    pattern = (pattern - pattern.mean()) / pattern.std()
    return (((images - levels * LEVEL * pattern).clamp(0, 1)) * 255).round() / 255


@pytest.mark.parametrize("side_px", [64, 128, 512, 1024])
def test_a_clean_face_has_no_grid_and_a_planted_one_is_seen(side_px: int) -> None:
    faces = make_faces(side_px)[: 1 if side_px > 512 else 4]
    assert compute_grid(faces).max() < LEVEL  # the one tile of 64 pixels is noisy
    for period_px in (2, 4, 8):
        judged = DETECTORS["grid"].judge(plant(faces, period_px, 6), faces)
        assert judged.mean() < -1, period_px


def test_a_grid_is_measured_in_its_own_height() -> None:
    flat = torch.full((1, 3, 256, 256), 0.5)
    checkerboard = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(128, 128)
    for levels in (2, 8):
        assert compute_grid(flat + levels * LEVEL * checkerboard) * 255 == pytest.approx(levels, rel=0.1)


def test_a_grid_that_the_ground_truth_has_is_no_fault_and_losing_it_neither() -> None:
    faces = make_faces(64)
    striped = plant(faces, 4, 6)
    assert DETECTORS["grid"].judge(striped, striped) == pytest.approx(torch.zeros(4), abs=1e-6)
    assert DETECTORS["grid"].judge(faces, striped) == pytest.approx(torch.zeros(4), abs=1e-6)


@pytest.mark.parametrize("side_px", [64, 512])
def test_smooth_skin_is_seen_and_noisy_skin_is_left_to_high_frequency(side_px: int) -> None:
    faces = make_faces(side_px)
    smooth = F.avg_pool2d(F.pad(faces, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    noisy = faces + 0.06 * torch.randn(faces.shape, generator=torch.Generator().manual_seed(0))
    assert DETECTORS["texture"].judge(smooth, faces).max() < -0.3
    assert DETECTORS["texture"].judge(noisy, faces) == pytest.approx(torch.zeros(4), abs=1e-6)
    assert DETECTORS["high_frequency"].judge(noisy, faces).max() < -0.1


def test_texture_looks_at_the_middle_alone_and_past_its_edges() -> None:
    faces = make_faces(128)
    border = faces.clone()
    border[..., :28] = border[..., 100:] = 0.5
    assert compute_texture(border) == pytest.approx(compute_texture(faces))
    eyes = faces.clone()
    eyes[..., 48:54, 40:56] = eyes[..., 48:54, 72:88] = 0.0  # sharp edges in a few blocks
    assert (compute_texture(eyes) / compute_texture(faces)).log().abs().max() < 0.05


def test_every_detector_has_a_family_and_a_least_effect() -> None:
    judges = [name for members in FAMILIES.values() for name in members]
    assert len(judges) == len(set(judges))
    assert set(DETECTORS) <= set(judges)
    assert set(judges) == set(LEAST_EFFECTS)


def test_on_real_faces_visible_grids_are_seen_and_clean_ones_are_not(shared_faces: Path) -> None:
    paths = sorted((shared_faces / "gt" / "london512").glob("*.jpg"))[:4]
    assert len(paths) == 4
    faces = torch.stack([torch.from_numpy(read_image(path)).permute(2, 0, 1) for path in paths]).float() / 255
    assert compute_grid(faces) == pytest.approx(MIN_GRID)
    for period_px in (4, 8):
        assert DETECTORS["grid"].judge(plant(faces, period_px, 3), faces).mean() < -0.5
