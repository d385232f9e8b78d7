"""Compute NIQE, the distance of an image's statistics from those of good photos; lower is better.

Source: Mittal, Soundararajan & Bovik 2013, "Making a completely blind image quality analyzer". What it leaves open
(windows, borders, the half size) is as in the authors' Matlab, which pyiqa follows too: the values are the same. All
is computed in float64: flat regions are told by differences of large squares.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.fidelity import compute_luma

BLOCK_PX = 96
WINDOW_PX, WINDOW_SIGMA_PX = 7, 7 / 6
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Down and right: the neighbours that a pixel is multiplied with."""
SHAPES = (0.2, 10.0, 0.001)
"""First, last and step of the shapes that are tried for a generalised Gaussian."""
BORDER_PX = 4
"""What a bicubic kernel at half size reaches beyond the image."""


def compute_niqe(images: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """(N,) distances of images (N, 3, H, W), RGB, 0 … 1.

    Args:
        mean, covariance: (36,) and (36, 36) of the features of good photos' blocks.
    Raises:
        ValueError: the images are smaller than a block.
    """
    height, width = (side // BLOCK_PX * BLOCK_PX for side in images.shape[-2:])
    if not height or not width:
        raise ValueError(
            f"{images.shape[-1]} x {images.shape[-2]} pixels are fewer than a block of {BLOCK_PX} x {BLOCK_PX}"
        )
    luma = compute_luma(images).double()[..., :height, :width]
    scales = [_block_features(_normalise(luma), BLOCK_PX), _block_features(_normalise(_halve(luma)), BLOCK_PX // 2)]
    return torch.stack([_distance(blocks, mean, covariance) for blocks in torch.cat(scales, dim=-1)])


def _distance(blocks: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """() of (blocks, 36) features; a block without one, being flat, counts in the others' means alone (equation 10)."""
    known = blocks[~blocks.isnan().any(dim=1)]
    own = torch.cov(known.T, correction=int(len(known) > 1))
    difference = mean.to(blocks) - blocks.nanmean(dim=0)
    inverse = torch.linalg.pinv((covariance.to(blocks) + own) / 2)
    return torch.sqrt(difference @ inverse @ difference)


def _normalise(luma: Tensor) -> Tensor:
    """(N, 1, H, W): mean subtracted, contrast normalised (equation 1)."""
    # The window is rounded to float32 as a whole and only then taken apart into a column and a row: its sum is not
    # quite 1, which decides the signs in flat regions.
    offsets = torch.arange(WINDOW_PX, dtype=torch.float64) - WINDOW_PX // 2
    line = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA_PX**2))
    window = (torch.outer(line, line) / line.sum() ** 2).float().to(luma)
    column = (window.sum(dim=1) / window.sum().sqrt()).reshape(1, 1, -1, 1)
    padded = F.pad(luma, (WINDOW_PX // 2,) * 4, mode="replicate")

    def smooth(planes: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(planes, column), column.transpose(2, 3))

    mean = smooth(padded)
    variance = (smooth(padded * padded) - mean * mean).abs()
    return (luma - mean) / (torch.sqrt(variance + torch.finfo(luma.dtype).eps) + 1)


def _halve(luma: Tensor) -> Tensor:
    """(N, 1, H / 2, W / 2): bicubic with antialiasing, mirrored at the borders as Matlab does."""
    for axis in (-2, -1):
        first, last = luma.narrow(axis, 0, BORDER_PX), luma.narrow(axis, -BORDER_PX, BORDER_PX)
        luma = torch.cat([first.flip(axis), luma, last.flip(axis)], dim=axis)
    half = F.interpolate(luma, scale_factor=0.5, mode="bicubic", antialias=True)
    cut = BORDER_PX // 2
    return half[..., cut:-cut, cut:-cut]


def _block_features(normalised: Tensor, block_px: int) -> Tensor:
    """(N, blocks, 18): the shape and width of the values' distribution and those of neighbours' products."""
    count, _, height, width = normalised.shape
    blocks = normalised.reshape(count, height // block_px, block_px, width // block_px, block_px).transpose(2, 3)
    blocks = blocks.reshape(-1, block_px, block_px)
    shape, left, right = _fit_asymmetric_gaussian(blocks)
    features = [shape, (left + right) / 2]
    for shift in SHIFTS:
        shape, left, right = _fit_asymmetric_gaussian(blocks * torch.roll(blocks, shift, dims=(1, 2)))
        mean = (right - left) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()  # equation 8
        features += [shape, mean, left, right]
    return torch.stack(features, dim=1).reshape(count, -1, len(features))


def _fit_asymmetric_gaussian(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(shape, left width, right width), (n,) each, of n blocks, by their moments; widths NaN for a flat one.

    Source: Lasmar, Stitou & Berthoumieu 2009, section 3.
    """
    shapes, ratios = _ratios(blocks.device)
    squares = blocks * blocks
    is_left, is_right = blocks < 0, blocks > 0
    left = torch.sqrt((squares * is_left).sum(dim=(1, 2)) / is_left.sum(dim=(1, 2)))
    right = torch.sqrt((squares * is_right).sum(dim=(1, 2)) / is_right.sum(dim=(1, 2)))
    skew = left / right
    ratio = blocks.abs().mean(dim=(1, 2)) ** 2 / squares.mean(dim=(1, 2))
    ratio = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    above = torch.searchsorted(ratios, ratio).clamp(1, len(ratios) - 1)
    nearest = torch.where(ratio - ratios[above - 1] <= ratios[above] - ratio, above - 1, above)
    shape = shapes[torch.where(ratio.isnan(), 0, nearest)]  # a flat block's: Matlab's minimum of nothing is the first
    width = (torch.lgamma(1 / shape) - torch.lgamma(3 / shape)).exp().sqrt()
    return shape, left * width, right * width


@cache
def _ratios(device: torch.device) -> tuple[Tensor, Tensor]:
    """(shapes, the ratio of moments that each has), both rising."""
    first, last, step = SHAPES
    shapes = torch.arange(first, last + step, step, dtype=torch.float64, device=device)
    ratios = 2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)
    return shapes, ratios.exp()
