"""Degrade HQ to LQ as published for blind face restoration, one image at a time, with numpy and OpenCV.

Blur with a Gaussian kernel, shrink, add Gaussian noise, compress as JPEG, resize back. What was drawn for one image
is a `Degradation`, so that a degraded image can be made again from its few numbers.

Sources: order of the steps as in XPixelGroup/DiffBIR `diffbir/dataset/codeformer.py`; kernels, noise and JPEG as
XPixelGroup/BasicSR `basicsr/data/degradations.py` documents them. Two departures: a JPEG quality is a whole number,
and a drawn noise has a seed of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

FloatImage = npt.NDArray[np.float32]
_Range = tuple[float, float]


def _check_order(limits: _Range) -> _Range:
    if not limits[0] <= limits[1]:
        raise ValueError(f"the low end comes first, got {limits[0]} to {limits[1]}")
    return limits


def _check_odd(size_px: int) -> int:
    if size_px % 2 == 0:
        raise ValueError(f"a kernel has a middle pixel, so its size is odd; got {size_px}")
    return size_px


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Quality = Annotated[int, Field(ge=1, le=100)]


class DegradationSettings(BaseModel):
    """From which ranges a degradation is drawn, uniformly; the defaults are the published ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    blur_kernel_px: Annotated[int, Field(ge=1, le=255), AfterValidator(_check_odd)] = Field(
        41, description="Side of the square blur kernel, odd, pixels"
    )
    iso_probability: float = Field(0.5, ge=0, le=1, description="Probability that the blur is the same in each axis")
    blur_sigma_px: Annotated[tuple[_Positive, _Positive], AfterValidator(_check_order)] = Field(
        (0.1, 12.0), description="Standard deviation of the blur in each axis, pixels, lowest and highest"
    )
    downsample_factor: Annotated[tuple[_Positive, _Positive], AfterValidator(_check_order)] = Field(
        (1.0, 12.0), description="How many times smaller each side becomes, lowest and highest"
    )
    noise_std: Annotated[tuple[_NotNegative, _NotNegative], AfterValidator(_check_order)] = Field(
        (0.0, 15.0), description="Standard deviation of the noise on the 0 to 255 scale, lowest and highest"
    )
    jpeg_quality: Annotated[tuple[_Quality, _Quality], AfterValidator(_check_order)] = Field(
        (30, 100), description="JPEG quality, 1 to 100, lowest and highest"
    )


PUBLISHED = DegradationSettings()
"""DiffBIR's face degradation, which DiffusionReward trains with."""
GFPGAN = DegradationSettings(
    blur_sigma_px=(0.1, 10.0), downsample_factor=(0.8, 8.0), noise_std=(0.0, 20.0), jpeg_quality=(60, 100)
)
"""GFPGAN's, the mildest (arXiv:2101.04061)."""
SMALL = DegradationSettings(
    blur_kernel_px=11, blur_sigma_px=(0.2, 2.0), downsample_factor=(1.0, 4.0), noise_std=(0.0, 15.0)
)
"""The published one scaled to faces of 64 pixels, which the tiny restorer is trained with."""
STRONG = DegradationSettings(
    blur_sigma_px=(1.0, 15.0), downsample_factor=(4.0, 30.0), noise_std=(0.0, 20.0), jpeg_quality=(30, 80)
)
"""CodeFormer's large degradation (sczhou/CodeFormer `options/CodeFormer_stage3.yml`)."""


@dataclass(frozen=True)
class Degradation:
    """Random draws for one image; `degrade` does the rest without chance."""

    blur_kernel_px: int
    sigma_x_px: float
    sigma_y_px: float
    rotation_rad: float
    downsample_factor: float
    noise_std: float
    """On the 0 to 255 scale."""
    noise_seed: int
    jpeg_quality: int


def draw_degradation(settings: DegradationSettings, rng: np.random.Generator) -> Degradation:
    """Draw the parameters of one image's degradation.

    As in BasicSR's mixed kernels, an isotropic blur draws one sigma, an anisotropic one draws two and a rotation.
    """
    isotropic = rng.random() < settings.iso_probability
    sigma_x_px = rng.uniform(*settings.blur_sigma_px)
    return Degradation(
        blur_kernel_px=settings.blur_kernel_px,
        sigma_x_px=sigma_x_px,
        sigma_y_px=sigma_x_px if isotropic else rng.uniform(*settings.blur_sigma_px),
        rotation_rad=0.0 if isotropic else rng.uniform(-math.pi, math.pi),
        downsample_factor=rng.uniform(*settings.downsample_factor),
        noise_std=rng.uniform(*settings.noise_std),
        noise_seed=int(rng.integers(2**31)),
        jpeg_quality=int(rng.integers(*settings.jpeg_quality, endpoint=True)),
    )


def compute_blur_kernel(
    size_px: int, sigma_x_px: float, sigma_y_px: float, rotation_rad: float
) -> npt.NDArray[np.float64]:
    """The rotated Gaussian kernel, (size_px, size_px), which sums to 1.

    exp(-x' S^-1 x / 2) over the pixel offsets x = (across, down), normalized, where S = U diag(sigma_x^2, sigma_y^2) U'
    and U rotates by `rotation_rad`. Source: BasicSR `bivariate_anisotropic_Gaussian`.
    """
    cos, sin = math.cos(rotation_rad), math.sin(rotation_rad)
    rotation = np.array([[cos, -sin], [sin, cos]])
    inverse = rotation @ np.diag([sigma_x_px**-2.0, sigma_y_px**-2.0]) @ rotation.T
    offsets = np.arange(size_px) - size_px // 2
    across, down = np.meshgrid(offsets, offsets)
    exponent = inverse[0, 0] * across**2 + 2 * inverse[0, 1] * across * down + inverse[1, 1] * down**2
    kernel = np.exp(-0.5 * exponent)
    return np.asarray(kernel / kernel.sum(), dtype=np.float64)


def degrade(hq: FloatImage, degradation: Degradation) -> FloatImage:
    """The low-quality image of a high-quality one, of the same size.

    Args:
        hq: (H, W, 3) RGB, float32 in [0, 1].
    Returns:
        (H, W, 3) RGB, float32 in [0, 1]; the same bytes whenever it is made from the same arguments.
    Raises:
        ValueError: another shape, type or range.
    """
    _check_image(hq)
    height, width = hq.shape[:2]
    kernel = compute_blur_kernel(
        degradation.blur_kernel_px, degradation.sigma_x_px, degradation.sigma_y_px, degradation.rotation_rad
    )
    blurred = cv2.filter2D(hq, -1, kernel)
    small_size = tuple(max(1, int(side // degradation.downsample_factor)) for side in (width, height))
    small = cv2.resize(blurred, small_size, interpolation=cv2.INTER_LINEAR)
    noise = np.random.default_rng(degradation.noise_seed).standard_normal(small.shape, dtype=np.float32)
    noisy = np.clip(small + noise * np.float32(degradation.noise_std / 255.0), 0.0, 1.0)
    compressed = _compress_jpeg(noisy, degradation.jpeg_quality)
    lq = cv2.resize(compressed, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(lq, 0.0, 1.0)


def _check_image(image: FloatImage) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected an RGB image of shape (H, W, 3), got {image.shape}")
    if image.dtype != np.float32:
        raise ValueError(f"expected float32 in [0, 1], got {image.dtype}; divide 8-bit values by 255")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 1.0):  # so written that NaN is refused too
        raise ValueError(f"expected values in [0, 1], got {low:g} to {high:g}")


def _compress_jpeg(image: FloatImage, quality: int) -> FloatImage:
    """Through JPEG and back; OpenCV orders channels BGR, and JPEG treats them differently."""
    pixels = np.round(image[..., ::-1] * 255.0).astype(np.uint8)
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None  # it was encoded two lines above
    return np.asarray(decoded[..., ::-1], dtype=np.float32) / np.float32(255.0)
