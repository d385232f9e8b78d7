"""Give a restored image the colours of its input, differentiably: the last step of published restorers.

All images are (N, 3, H, W) RGB; neither function clamps, so that gradients pass through them unbroken.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ColorFix = Literal["wavelet", "adain", "none"]
WAVELET_LEVELS = 5
VARIANCE_FLOOR = 1e-5
"""Added to a variance, so that a flat image is divided by no zero."""


def fix_color(content: Tensor, style: Tensor, kind: ColorFix) -> Tensor:
    """`content` with the colours of `style` by the fix of that name; `content` itself for 'none'.

    Args:
        content: (N, 3, H, W) restored images.
        style: (N, 3, H, W) what they were restored from, of the same size.
    Raises:
        ValueError: the sizes differ, or there is no such fix.
    """
    if kind == "none":
        return content
    if kind == "wavelet":
        return fix_color_by_wavelet(content, style)
    if kind == "adain":
        return fix_color_by_statistics(content, style)
    raise ValueError(f"no colour fix {kind!r}; there are wavelet, adain and none")


def fix_color_by_wavelet(content: Tensor, style: Tensor, levels: int = WAVELET_LEVELS) -> Tensor:
    """The fine detail of `content` on the colours and shading of `style`.

    Args:
        content, style: (N, 3, H, W) of one shape.
        levels: how often the image is blurred, each time twice as wide; 5 as published.
    Returns:
        (N, 3, H, W), not clamped.
    Raises:
        ValueError: the shapes differ.
    Source: the undecimated wavelet fix of StableSR (arXiv:2305.07015) as DiffBIR applies it (arXiv:2308.15070).
    """
    _check_shapes(content, style)
    return content - compute_low_band(content, levels) + compute_low_band(style, levels)


def fix_color_by_statistics(content: Tensor, style: Tensor) -> Tensor:
    """`content` with each channel's mean and standard deviation of `style` (adaptive instance normalization).

    Args:
        content, style: (N, 3, H, W) of one shape.
    Returns:
        (N, 3, H, W), not clamped.
    Raises:
        ValueError: the shapes differ.
    Source: arXiv:1703.06868, equation 8, with the unbiased variance that StableSR and DiffBIR use.
    """
    _check_shapes(content, style)
    content_mean, content_std = _compute_statistics(content)
    style_mean, style_std = _compute_statistics(style)
    return (content - content_mean) / content_std * style_std + style_mean


def compute_low_band(image: Tensor, levels: int = WAVELET_LEVELS) -> Tensor:
    """Blur an image with dilation 1, 2, 4, …: its colours and shading are left, of the same shape."""
    for level in range(levels):
        image = _blur(image, 2**level)
    return image


def _blur(image: Tensor, dilation_px: int) -> Tensor:
    """[1 2 1] / 4 across and down, its taps `dilation_px` apart, borders replicated; (N, C, H, W), any size."""
    channels = image.shape[1]
    taps = image.new_tensor([0.25, 0.5, 0.25])
    padded = F.pad(image, (dilation_px,) * 4, mode="replicate")
    across = taps.reshape(1, 1, 1, 3).expand(channels, 1, 1, 3)
    down = taps.reshape(1, 1, 3, 1).expand(channels, 1, 3, 1)
    blurred = F.conv2d(padded, across, groups=channels, dilation=dilation_px)
    return F.conv2d(blurred, down, groups=channels, dilation=dilation_px)


def _compute_statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of each image and channel, (N, C, 1, 1) each; 0 variance for a single pixel."""
    single = image.shape[2] * image.shape[3] == 1
    variance = image.new_zeros(()) if single else image.var(dim=(2, 3), keepdim=True)
    return image.mean(dim=(2, 3), keepdim=True), torch.sqrt(variance + VARIANCE_FLOOR)


def _check_shapes(content: Tensor, style: Tensor) -> None:
    if content.shape != style.shape or content.ndim != 4:
        raise ValueError(
            f"expected two batches of images of one shape, got {tuple(content.shape)} and {tuple(style.shape)}"
        )
