"""Compute the low band of the dual-tree complex wavelet transform (DTCWT), which ReFL's structural loss compares.

The low band is linear in the image and separable, so it is two matrices, one per axis, built once per size. On a 512 px
image value and gradient take a tenth of the time that a general transform needs, and no package for it works with
current torch and numpy.

Sources: Selesnick, Baraniuk & Kingsbury, "The Dual-Tree Complex Wavelet Transform", IEEE SPM 2005; the near-symmetric
13,19-tap and the 14-tap quarter-shift filters are Kingsbury's (ACHA 2001). Extension and padding as
fbcotter/pytorch_wavelets has them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Matrix = npt.NDArray[np.float64]

LEVELS = 3
NEAR_SYMMETRIC = (-9 / 5120, 0.0, 114 / 5120, -240 / 5120, -247 / 5120, 1520 / 5120, 2844 / 5120)
"""Lowpass of level 1, its first half and middle; it is symmetric and sums to 1."""
QUARTER_SHIFT = (
    0.003253142763653182,
    -0.00388321199915849,
    0.03466034684485349,
    -0.03887280126882779,
    -0.11720388769911527,
    0.27529538466888204,
    0.7561456438925225,
    0.5688104207121227,
    0.011866092033797,
    -0.1067118046866654,
    0.023825384794920298,
    0.01702522388155399,
    -0.005439475937274115,
    -0.004556895628475491,
)
"""Lowpass of one tree at the later levels, which sums to the square root of 2; the other tree's is its mirror image."""


def compute_low_pass(images: Tensor, levels: int = LEVELS) -> Tensor:
    """The low band of each channel.

    Args:
        images: (N, C, H, W), any sizes.
        levels: 3 as published.
    Returns:
        (N, C, h, w), where h is about H / 2^(levels - 1): both trees' samples, interleaved. A flat image of value v
        becomes a flat one of value 2^(levels - 1) v.
    """
    # in float64: a GPU may multiply float32 matrices with ten bits, and the loss takes differences of what comes out
    down, across = (torch.as_tensor(_low_pass_matrix(side, levels), device=images.device) for side in images.shape[-2:])
    low: Tensor = (down @ images.double() @ across.T).to(images.dtype)
    return low


@cache
def _low_pass_matrix(size: int, levels: int) -> Matrix:
    """(h, size): takes a column of pixels to its low band."""
    matrix = _filter_matrix(size + size % 2) @ _repeat_ends(size, 0, size % 2)
    for _ in range(levels - 1):
        odd_pairs = int(len(matrix) % 4 != 0)
        padded = _repeat_ends(len(matrix), odd_pairs, odd_pairs) @ matrix
        matrix = _decimating_matrix(len(padded)) @ padded
    return matrix


def _repeat_ends(size: int, before: int, after: int) -> Matrix:
    """(before + size + after, size): repeats the first and the last sample."""
    return np.asarray(np.eye(size)[np.clip(np.arange(-before, size + after), 0, size - 1)])


def _filter_matrix(size: int) -> Matrix:
    """(size, size): the filter of level 1, the samples mirrored at the ends."""
    taps = np.array([*NEAR_SYMMETRIC, *NEAR_SYMMETRIC[-2::-1]])
    matrix = np.zeros((size, size))
    for row in range(size):
        places = _mirror(row - len(taps) // 2 + np.arange(len(taps)), size)
        np.add.at(matrix[row], places, taps)
    return matrix


def _decimating_matrix(size: int) -> Matrix:
    """(size / 2, size): both trees' filters, each keeping every fourth sample, outputs interleaved.

    Args:
        size: a multiple of 4.
    """
    trees = (np.array(QUARTER_SHIFT), np.array(QUARTER_SHIFT)[::-1])
    matrix = np.zeros((size // 2, size))
    for row in range(size // 2):
        tree = row % 2
        taps = trees[tree]
        first = 4 * (row // 2) + 2 + tree - len(taps)
        np.add.at(matrix[row], _mirror(first + 2 * np.arange(len(taps)), size), taps)
    return matrix


def _mirror(places: npt.NDArray[np.int_], size: int) -> npt.NDArray[np.int_]:
    """Places beyond the ends mirrored about the border of the outermost sample: … 1 0 | 0 1 … n-1 | n-1 n-2 …."""
    around = places % (2 * size)
    return np.minimum(around, 2 * size - 1 - around)
