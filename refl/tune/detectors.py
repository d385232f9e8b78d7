"""Detect what a fooled reward makes of faces: pale or loud colours, haze, grids, oily skin.

All take (N, 3, H, W) RGB in [0, 1] and give (N,), a measure of each image above 0. As judges they are compared with the
ground truth's by the logarithm of their ratio, so that neither the face nor its light matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

HIGH_FREQUENCY = 0.25
"""Cycles a pixel; half of what an image can hold."""
MIN_SATURATION = MIN_CONTRAST = 1e-3
GRID_TILE_PX = 64
"""Side of the tiles whose spectra are averaged: larger images give more tiles, not narrower lines."""
LONGEST_PERIOD_PX = 12
PEAK_NEIGHBOURS = 7
"""Side of the square of frequencies whose median a peak stands over."""
PEAK_FACTOR, PEAK_NOISE = 4.0, 12.0
"""What a line must have of that median: the first for many tiles; with few, whose spectrum is noisy, the second by the
root of their number more. None of 176 clean faces has one."""
MIN_GRID = 0.5 / 255
"""Half a grey level, root mean square: nobody sees less."""
TEXTURE_BLOCKS = 16
"""Across the middle of the face."""
MIN_TEXTURE = 0.5 / 255


def compute_saturation(images: Tensor) -> Tensor:
    """Mean over pixels of max - min of red, green and blue; at least MIN_SATURATION."""
    return (images.amax(dim=1) - images.amin(dim=1)).mean(dim=(1, 2)).clamp_min(MIN_SATURATION)


def compute_contrast(images: Tensor) -> Tensor:
    """Standard deviation of the luma over pixels; at least MIN_CONTRAST."""
    return images.mean(dim=1).std(dim=(1, 2), correction=0).clamp_min(MIN_CONTRAST)


def compute_high_frequency(images: Tensor) -> Tensor:
    """Power of the luma above HIGH_FREQUENCY in either axis, where noise, halos and checkerboards show; above 0."""
    luma = images.mean(dim=1)
    power = torch.fft.fft2(luma, norm="ortho").abs().square()
    down, across = (torch.fft.fftfreq(side, device=images.device).abs() for side in luma.shape[-2:])
    high = (down[:, None] > HIGH_FREQUENCY) | (across[None, :] > HIGH_FREQUENCY)
    high_power: Tensor = (power * high).mean(dim=(1, 2))
    return high_power + 1e-8


def compute_grid(images: Tensor) -> Tensor:
    """Root mean square of the luma's periodic patterns of 2 to LONGEST_PERIOD_PX pixels; at least MIN_GRID.

    A pattern is a line of the spectrum, averaged over half-overlapping tiles under a Hann window, that stands out from
    the median of the frequencies around it: the grid of an autoencoder's 8 × 8 blocks, a
    checkerboard, a moiré. What a face has of a frequency it has of its neighbours too.
    """
    luma = images.mean(dim=1, keepdim=True)
    side = min(GRID_TILE_PX, *luma.shape[-2:])
    window = torch.hann_window(side, device=images.device)
    tiles = F.unfold(luma, side, stride=max(1, side // 2)).transpose(1, 2).reshape(len(luma), -1, side, side)
    tiles = tiles - tiles.mean(dim=(2, 3), keepdim=True)
    spectrum = torch.fft.fft2(tiles * window[:, None] * window).abs().square().mean(dim=1)  # (N, S, S)
    reach = PEAK_NEIGHBOURS // 2
    around = F.pad(spectrum.unsqueeze(1), (reach,) * 4, mode="circular")
    floor = F.unfold(around, PEAK_NEIGHBOURS).median(dim=1).values.view_as(spectrum)
    down = torch.fft.fftfreq(side, device=images.device).abs()
    short = torch.maximum(down[:, None], down[None, :]) >= 1 / LONGEST_PERIOD_PX
    factor = PEAK_FACTOR + PEAK_NOISE / math.sqrt(tiles.shape[1])
    lines = torch.where((spectrum > factor * floor) & short, spectrum - floor, 0.0)
    power: Tensor = lines.sum(dim=(1, 2)) / (side**2 * window.square().sum() ** 2)
    return power.sqrt().clamp_min(MIN_GRID)


def compute_texture(images: Tensor) -> Tensor:
    """Root mean square of the luma's finest detail in the median block of the middle of the face; at least MIN_TEXTURE.

    The middle is half the width and half the height. Most of its blocks are skin, so that the median says little of
    eyes, nostrils and lips.
    """
    luma = images.mean(dim=1, keepdim=True)
    line = luma.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    smooth = F.conv2d(F.pad(luma, (2, 2, 2, 2), mode="reflect"), (line[:, None] * line)[None, None])
    height, width = luma.shape[-2:]
    detail = (luma - smooth)[:, :, height // 4 : height - height // 4, width // 4 : width - width // 4]
    down, across = (max(1, min(TEXTURE_BLOCKS, side // 4)) for side in detail.shape[-2:])
    power = F.adaptive_avg_pool2d(detail.square(), (down, across)).flatten(1)
    return power.median(dim=1).values.sqrt().clamp_min(MIN_TEXTURE)


@dataclass(frozen=True)
class Detector:
    """A measure, and what of its distance from the ground truth's is bad."""

    measure: Callable[[Tensor], Tensor]
    bad: Literal["either", "more", "less"]

    def judge(self, restored: Tensor, hq: Tensor) -> Tensor:
        """(N,) of (N, 3, H, W) images: minus the bad part of the logarithm of the ratio; 0 is best."""
        ratio = (self.measure(restored) / self.measure(hq)).log()
        if self.bad == "either":
            return -ratio.abs()
        return -ratio.clamp_min(0) if self.bad == "more" else ratio.clamp_max(0)


DETECTORS = {
    "saturation": Detector(compute_saturation, "either"),
    "contrast": Detector(compute_contrast, "either"),
    "high_frequency": Detector(compute_high_frequency, "either"),
    "grid": Detector(compute_grid, "more"),
    "texture": Detector(compute_texture, "less"),
}
"""Judges of our own beside the metrics; noisy skin is high_frequency's to see."""
