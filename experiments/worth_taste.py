"""State what the SIMULATED annotator of `experiments.reward_worth` likes; written down before the first run.

The taste compares a restored face with the ground truth, which neither the reward models nor the annotator's answers
show to anybody, by two things:

- **Texture.** The fine energy of skin, hair and eyes shall be the ground truth's: less is oily, more is noisy. In each
  of 7 x 7 windows and two bands (finer than 0.8 px, and 0.8 to 1.6 px) the mean absolute difference of the logarithms
  of the mean squares.
- **Likeness.** The face shall be the person's: the cosine of the whitened eigenface coefficients (Turk & Pentland
  1991), the 4th to the 63rd, of the restored face and of the ground truth, at 32 px.

Checked cheaply before any reward was trained (65 faces held out from the shipped restorer's training, 60 steps): the
restorer that follows the taste itself raises its mean from 1.026 to 1.232, the terms that hold the restorer without any
reward to 1.030. They do not know the energy of a texture whose place is not right, and they pay for leaving it away;
what they gain is likeness. It is not FSIM + VIF, by which the annotator of `experiments.loop` judges: those ask for
detail in its right place, which a diffusion restorer of 64 px cannot know.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

LIKENESS_WEIGHT = 2.0
"""A unit of cosine against a unit of the logarithm of texture energy."""
SIGMAS_PX = (0.8, 1.6)
WINDOW_PX, STRIDE_PX = 16, 8
FLOOR = (1 / 255) ** 2
"""Added to mean squares: energy that 8 bits cannot show is none."""
FIRST, LAST = 3, 63
"""Eigenfaces that count: the first three are light from left, right and above."""
SMALL_PX = 32


class Taste:
    """What the annotator likes, once eigenfaces are known; differentiable, so that a restorer can follow it itself."""

    def __init__(self, faces: Tensor) -> None:
        """
        Args:
            faces: (N, 3, H, W) RGB in [0, 1], N of 64 or more, that the eigenfaces are of.
        """
        small = _shrink(faces)
        self.mean = small.mean(dim=0)
        _, spread, directions = torch.linalg.svd(small - self.mean, full_matrices=False)
        self.project = (directions[FIRST:LAST] / spread[FIRST:LAST, None]).T

    def __call__(self, restored: Tensor, hq: Tensor) -> Tensor:
        """(N,) how much the annotator likes (N, 3, H, W) restored faces, in [0, 1], of the ground truths; at most 2."""
        restored = restored.clamp(0, 1)
        return LIKENESS_WEIGHT * self.compute_likeness(restored, hq) - compute_texture_distance(restored, hq)

    def compute_likeness(self, restored: Tensor, hq: Tensor) -> Tensor:
        """(N,) cosines of whitened eigenface coefficients."""
        ours, theirs = ((_shrink(images) - self.mean) @ self.project for images in (restored, hq))
        return F.cosine_similarity(ours, theirs)


def compute_texture_distance(restored: Tensor, hq: Tensor) -> Tensor:
    """(N,) mean absolute differences of the logarithms of texture energy over bands and windows; 0 is alike."""
    return (measure_texture(restored) - measure_texture(hq)).abs().mean(dim=(1, 2, 3))


def measure_texture(images: Tensor) -> Tensor:
    """(N, bands, h, w) logarithms of the mean squares of each band in each window of (N, 3, H, W) images."""
    blurred = [to_luma(images)]
    blurred += [blur(blurred[0], sigma) for sigma in SIGMAS_PX]
    bands = torch.cat([fine - coarse for fine, coarse in itertools.pairwise(blurred)], dim=1)
    return torch.log(F.avg_pool2d(bands.square(), WINDOW_PX, STRIDE_PX) + FLOOR)


def to_luma(images: Tensor) -> Tensor:
    """(N, 1, H, W) BT.601 luma of (N, 3, H, W) RGB."""
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1, keepdim=True)


def blur(images: Tensor, sigma_px: float) -> Tensor:
    """(N, C, H, W) smoothed by a Gaussian, mirrored at the borders."""
    radius = int(3 * sigma_px + 0.5)
    taps = torch.exp(-torch.arange(-radius, radius + 1).square() / (2 * sigma_px**2)).to(images)
    taps = (taps / taps.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    across = F.conv2d(padded, taps[:, :, None], groups=images.shape[1])
    return F.conv2d(across, taps[..., None], groups=images.shape[1])


def _shrink(images: Tensor) -> Tensor:
    """(N, 32 x 32) luma of small images."""
    return F.interpolate(to_luma(images), (SMALL_PX, SMALL_PX), mode="area").flatten(1)
