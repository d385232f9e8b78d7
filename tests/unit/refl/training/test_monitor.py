"""The hacking monitor: its rule on hand-made numbers, its own judges, and a look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from torch import Tensor

from refl.monitor import (
    Look,
    Monitor,
    choose_judges,
    compare,
    compute_high_frequency,
    compute_saturation,
    judge,
    to_bytes,
)


def make_look(live: Sequence[float], **judges: Sequence[float]) -> Look:
    return Look(0, {"live": np.array(live)}, {name: np.array(values) for name, values in judges.items()})


FIRST = make_look([0.0, 0.1, 0.2, 0.3], psnr=[20.0, 21.0, 22.0, 23.0], ssim=[0.5, 0.6, 0.7, 0.8])


def test_hacking_is_a_risen_reward_with_enough_fallen_judges() -> None:
    # every face: reward +0.1, PSNR -1 and SSIM -0.1, the same within a tenth: far beyond two standard errors
    now = make_look([0.1, 0.21, 0.29, 0.4], psnr=[19.0, 20.1, 20.9, 22.0], ssim=[0.4, 0.5, 0.61, 0.69])
    verdict = compare(FIRST, now, judges_needed=2)
    assert verdict.hacking
    assert verdict.fallen == ["psnr", "ssim"]
    mean, error = verdict.changes["psnr"]
    assert mean == pytest.approx(-1.0)
    # differences -1, -0.9, -1.1, -1: standard deviation sqrt(0.02 / 3), over the root of 4
    assert error == pytest.approx((0.02 / 3) ** 0.5 / 2)
    assert not compare(FIRST, now, judges_needed=3).hacking


def test_no_hacking_where_the_reward_did_not_rise_or_the_fall_is_noise() -> None:
    fallen = {"psnr": [19.0, 20.0, 21.0, 22.1], "ssim": [0.4, 0.5, 0.6, 0.71]}
    assert not compare(FIRST, make_look([0.0, 0.1, 0.2, 0.3], **fallen), judges_needed=1).hacking
    noisy = {"psnr": [15.0, 26.0, 17.0, 27.0], "ssim": [0.5, 0.6, 0.7, 0.8]}
    verdict = compare(FIRST, make_look([0.1, 0.2, 0.3, 0.41], **noisy), judges_needed=1)
    assert verdict.reward_rose
    assert verdict.fallen == []


def test_a_judge_that_measures_too_few_faces_never_falls() -> None:
    now = make_look([0.1, 0.2, 0.3, 0.41], psnr=[1.0, np.nan, np.nan, np.nan], ssim=[0.5, 0.6, 0.7, 0.8])
    assert compare(FIRST, now, judges_needed=1).fallen == []


def test_own_judges_are_zero_for_the_ground_truth_and_fall_with_saturation_and_grids() -> None:
    torch.manual_seed(0)
    hq = torch.rand(2, 3, 16, 16) * 0.5 + 0.25
    names = ["saturation", "high_frequency"]
    assert all(np.allclose(values, 0, atol=1e-6) for values in judge(names, hq, hq).values())
    gray = hq.mean(dim=1, keepdim=True)
    vivid = gray + 1.5 * (hq - gray)  # each pixel's largest minus smallest channel grows by one half
    assert judge(names, vivid, hq)["saturation"] == pytest.approx(-np.log(1.5), abs=1e-5)
    assert compute_saturation(vivid) == pytest.approx(1.5 * compute_saturation(hq), rel=1e-5)
    checkerboard = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)
    flat = torch.full((1, 3, 16, 16), 0.5)
    # all its power, 0.01 a pixel, is at half a cycle a pixel
    assert compute_high_frequency(flat + 0.1 * checkerboard) == pytest.approx(0.01, rel=1e-3)
    assert compute_high_frequency(flat) < 1e-7


def test_the_optimised_perceptual_term_is_no_judge() -> None:
    images = to_bytes(torch.rand(2, 3, 64, 64))
    assert "gmsd" not in choose_judges("gmsd", images)
    assert "fsim" in choose_judges("gmsd", images)
    assert "gmsd" in choose_judges("lpips", images)


def test_looks_compare_with_the_first_and_rescore_it_by_the_live_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hq = torch.rand(3, 3, 32, 32)
    monitor = Monitor(lq=hq * 0.5, hq=hq, seeds=[0, 1, 2], judges=["psnr", "saturation"], judges_needed=2)
    factor = 1.0

    def restore(lq: Tensor, seeds: Sequence[int]) -> Tensor:
        assert seeds == [0, 1, 2]
        return lq * 2 * factor

    def live(images: Tensor) -> Tensor:  # a model whose scores drift upwards without any change of the images
        return images.mean(dim=(1, 2, 3)) + drift

    drift = 0.0
    means, verdict, _ = monitor.look(0, restore, {"live": live, "frozen": live})
    assert verdict is None
    assert set(means) == {"live", "frozen", "psnr", "saturation"}
    drift = 5.0
    _, verdict, _ = monitor.look(10, restore, {"live": live, "frozen": live})
    assert verdict is not None
    assert verdict.changes["live"] == (0.0, 0.0)
    factor = 0.8
    _, verdict, restored = monitor.look(20, restore, {"live": live, "frozen": live})
    assert verdict is not None
    assert verdict.changes["live"][0] < 0
    assert [row["step"] for row in monitor.history] == [0, 10, 20]
    monitor.write_grid(tmp_path / "grids" / "20.png", restored)
    with PilImage.open(tmp_path / "grids" / "20.png") as grid:
        assert grid.size == (3 * 32, 4 * 32)  # a column a face; lq, first, now, hq
