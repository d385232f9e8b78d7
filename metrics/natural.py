"""Measure one image without parameters or a reference, with numpy and OpenCV.

None of them is a quality by itself: noise may be film grain or a restorer's artefact. A labeler learns which way each
counts, so "higher" below says what the number means, not what is better. Heavy-tailed ones are logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]

WINDOW_PX = 7
WINDOW_SIGMA_PX = 7 / 6
LAPLACIAN_OF_LAPLACIAN = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float32)
BAND = (0.02, 0.5)
"""Spatial frequencies of the spectrum's slope, cycles a pixel."""
RINGS = 24
BLOCK_PX = 8


@dataclass(frozen=True)
class Planes:
    """One image as the measures need it, computed once for all of them."""

    rgb: Image
    """(H, W, 3), 0 … 255."""
    luma: Plane
    """(H, W), 0 … 255: ITU-R BT.601 weights."""
    mscn: Plane
    """(H, W): mean subtracted, contrast normalised luma; about -3 … 3."""
    gradient: Plane
    """(H, W): gradient magnitude of the luma by Sobel's masks, 0 or more."""


def split_planes(rgb: Image) -> Planes:
    """The planes of an image (H, W, 3), RGB, 0 … 255."""
    weights = np.array([[0.299, 0.587, 0.114]], np.float32)
    luma = np.asarray(cv2.transform(rgb.astype(np.float32), weights), dtype=np.float32)
    across, down = (cv2.Sobel(luma, cv2.CV_32F, dx, 1 - dx) for dx in (1, 0))
    return Planes(rgb, luma, _mscn(luma), np.asarray(cv2.magnitude(across, down), dtype=np.float32))


def _mscn(luma: Plane) -> Plane:
    """Source: Mittal, Moorthy & Bovik 2012 (BRISQUE), equations 1 to 3, constant 1."""
    centred = luma - luma.mean()  # else the squares below lose the flat regions' variance in rounding
    blur = ((WINDOW_PX, WINDOW_PX), WINDOW_SIGMA_PX)
    mean = cv2.GaussianBlur(centred, *blur)
    variance = cv2.GaussianBlur(centred * centred, *blur) - mean * mean
    return np.asarray((centred - mean) / (np.sqrt(np.maximum(variance, 0)) + 1))


def noise_level(planes: Planes) -> float:
    """Log of the noise's standard deviation in grey levels, the finest texture counted as noise; higher: noisier.

    Source: Immerkær 1996, Fast noise variance estimation.
    """
    response = cv2.filter2D(planes.luma, cv2.CV_32F, LAPLACIAN_OF_LAPLACIAN)
    return math.log(float(cv2.norm(response, cv2.NORM_L1)) / response.size * math.sqrt(math.pi / 2) / 6 + 0.01)


def sharpness(planes: Planes) -> float:
    """Log variance of the Laplacian; higher: more and stronger fine edges."""
    _, deviation = cv2.meanStdDev(cv2.Laplacian(planes.luma, cv2.CV_32F))
    return math.log(float(deviation[0, 0]) ** 2 + 1e-6)


def spectrum_slope(planes: Planes) -> float:
    """Slope of log power over log frequency in BAND; natural images are near -2, higher: more fine detail."""
    height, width = planes.luma.shape
    ring, window = _ring_of(height, width), _window(height, width)
    spectrum = np.fft.rfft2((planes.luma - planes.luma.mean()) * window)
    power = spectrum.real**2 + spectrum.imag**2
    edges = np.linspace(*BAND, RINGS + 1)
    sums = np.bincount(ring.ravel(), weights=power.ravel(), minlength=RINGS + 2)[1 : RINGS + 1]
    counts = np.bincount(ring.ravel(), minlength=RINGS + 2)[1 : RINGS + 1]
    seen = counts > 0  # a small image has no frequencies in some rings
    centres = np.log((edges[1:] + edges[:-1])[seen] / 2)
    return float(np.polyfit(centres, np.log(sums[seen] / counts[seen] + 1e-9), 1)[0])


@lru_cache(maxsize=8)
def _ring_of(height: int, width: int) -> npt.NDArray[np.int64]:
    """(H, W // 2 + 1) ring of each place of a real spectrum: 1 … RINGS in BAND, 0 below, RINGS + 1 above."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    return np.asarray(np.digitize(radius, np.linspace(*BAND, RINGS + 1)), dtype=np.int64)


@lru_cache(maxsize=8)
def _window(height: int, width: int) -> Plane:
    """(H, W) Hann window, so that the image's edges do not count as detail."""
    return np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)


def mscn_kurtosis(planes: Planes) -> float:
    """Log kurtosis of the normalised luma; log 3 for a Gaussian, higher: few strong edges on smooth ground."""
    square = planes.mscn * planes.mscn
    return math.log((float((square * square).mean()) + 1e-9) / (float(square.mean()) ** 2 + 1e-9))


def mscn_correlation(planes: Planes) -> float:
    """Correlation of the normalised luma with its right neighbour, -1 … 1; higher: smoother."""
    left, right = planes.mscn[:, :-1], planes.mscn[:, 1:]
    return float((left * right).mean() / ((planes.mscn**2).mean() + 1e-9))


def edge_ratio(planes: Planes) -> float:
    """Log ratio of the strongest hundredth of the gradients to the middle one; higher: hard edges on smooth ground."""
    middle, strong = np.percentile(planes.gradient, (50, 99))
    return math.log((float(strong) + 0.1) / (float(middle) + 0.1))


def blockiness(planes: Planes) -> float:
    """Log of how much the steps at one place of every BLOCK_PX stand out, mean of both axes; higher: JPEG's blocks.

    0 for no grid; the blocks may begin at any pixel.
    """
    ratios = []
    for axis in (0, 1):
        profile = np.abs(np.diff(planes.luma, axis=axis)).mean(axis=1 - axis)
        folded = profile[: len(profile) // BLOCK_PX * BLOCK_PX].reshape(-1, BLOCK_PX).mean(axis=0)
        ratios.append(math.log((float(folded.max()) + 0.01) / (float(np.median(folded)) + 0.01)))
    return sum(ratios) / 2


def colourfulness(planes: Planes) -> float:
    """Spread and strength of the colours, 0 (grey) … about 110; higher: more colourful.

    Source: Hasler & Süsstrunk 2003, Measuring colourfulness in natural images.
    """
    opponents = cv2.transform(planes.rgb.astype(np.float32), np.array([[1, -1, 0], [0.5, 0.5, -1]], np.float32))
    mean, deviation = cv2.meanStdDev(opponents)
    return float(np.hypot(*deviation.ravel()) + 0.3 * np.hypot(*mean.ravel()))


def contrast(planes: Planes) -> float:
    """Standard deviation of the luma in grey levels, 0 … 127.5; higher: more contrast."""
    return float(cv2.meanStdDev(planes.luma)[1][0, 0])


MEASURES: dict[str, Callable[[Planes], float]] = {
    "noise_level": noise_level,
    "sharpness": sharpness,
    "spectrum_slope": spectrum_slope,
    "mscn_kurtosis": mscn_kurtosis,
    "mscn_correlation": mscn_correlation,
    "edge_ratio": edge_ratio,
    "blockiness": blockiness,
    "colourfulness": colourfulness,
    "contrast": contrast,
}
