"""Load a metric by its name, ready to be called on tensors.

pyiqa is imported where one of its metrics is asked for and nowhere else: its licence forbids commercial use, and
measuring works without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import scipy.io
import torch
from torch import Tensor

from licences.terms import is_commercial
from metrics.fidelity import compute_gmsd, compute_psnr, compute_ssim
from metrics.lists import FACE_METRICS, OUR_VERSIONS, MetricError, describe_missing
from metrics.niqe import compute_niqe
from metrics.weights import load_with_weights

MetricFunction = Callable[[Tensor, Tensor | None], Tensor]
"""Images (N, 3, H, W), RGB, 0 … 1, and as many references of the same size or None → N values."""

COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "psnr": compute_psnr,
    "ssim": compute_ssim,
    "gmsd": compute_gmsd,
}
"""Ours that compare an image with its reference."""
LOWER_IS_BETTER = {"gmsd", "niqe_skvideo", *FACE_METRICS}
"""Of those that are not pyiqa's."""
OF_SETS = {"fid", "sfid", "fid_dinov2", "inception_score"}
"""pyiqa's metrics that compare sets of images and have no value for one."""


def needs_reference(name: str) -> bool:
    """Whether a metric compares with a reference.

    Raises:
        MetricError: nobody knows the metric, it has no value for one image, or pyiqa, whose it is, is not installed.
    """
    if name in OUR_VERSIONS:
        return name in COMPARISONS
    if name in FACE_METRICS:
        return True
    if name in OF_SETS:
        raise MetricError(f"The metric {name} compares sets of images and has no value for one; leave it out.")
    return bool(_read_config(name)["metric_mode"] == "FR")


def is_lower_better(name: str) -> bool:
    """Whether a smaller raw value is a better one: as pyiqa says, true for our distances, false for our measures."""
    if name in OUR_VERSIONS or name in FACE_METRICS:
        return name in LOWER_IS_BETTER
    return bool(_read_config(name).get("lower_better", False))


def _read_config(name: str) -> dict[str, Any]:
    """What pyiqa says of one of its metrics.

    Raises:
        MetricError: it has none of that name, or is not installed.
    """
    if is_commercial():
        raise MetricError(describe_missing(name, "pyiqa"))
    try:
        from pyiqa.default_model_configs import DEFAULT_CONFIGS
    except ImportError as error:
        raise MetricError(describe_missing(name, "pyiqa", str(error))) from error
    if name not in DEFAULT_CONFIGS:
        known = ", ".join([*OUR_VERSIONS, *FACE_METRICS])
        raise MetricError(f"There is no metric {name!r}. Ours: {known}; pyiqa's: see `pyiqa -ls`.")
    config: dict[str, Any] = DEFAULT_CONFIGS[name]
    return config


@cache
def load_metric(name: str, device: str) -> MetricFunction:
    """A metric ready to be called on tensors of that device.

    Raises:
        MetricError: its weights cannot be had, or a package that it needs is not installed.
    """
    if name == "niqe_skvideo":
        return _load_niqe()
    if name in COMPARISONS:
        return partial(_compare, COMPARISONS[name])

    def build() -> Any:
        import pyiqa

        logging.getLogger("pyiqa").setLevel(logging.WARNING)
        # No range check: pixels of 8 bits cannot leave it.
        return pyiqa.create_metric(name, device=device, check_input_range=False)

    loaded: MetricFunction = load_with_weights(name, build)
    return loaded


@cache
def load_differentiable(name: str, device: str) -> MetricFunction:
    """As `load_metric`, with a gradient to the images, for what is optimised.

    Raises:
        MetricError: as there, or the metric has no gradient.
    """
    if name in COMPARISONS:
        return load_metric(name, device)
    if name in OUR_VERSIONS or name in FACE_METRICS:
        raise MetricError(f"{name} has no gradient to the pixels; take {', '.join(COMPARISONS)} or one of pyiqa's.")

    def build() -> Any:
        import pyiqa

        logging.getLogger("pyiqa").setLevel(logging.WARNING)
        return pyiqa.create_metric(name, as_loss=True, loss_reduction="none", device=device).requires_grad_(False)

    needs_reference(name)  # says whether there is one of that name
    loaded: MetricFunction = load_with_weights(name, build)
    return loaded


def _compare(function: Callable[[Tensor, Tensor], Tensor], images: Tensor, references: Tensor | None) -> Tensor:
    assert references is not None
    return function(images, references)


def _load_niqe() -> MetricFunction:
    # scikit-video is kept by nobody and its code fails on numpy 2; only this file of it is read.
    parameters = scipy.io.loadmat(_package_file("scikit-video", "niqe_image_params.mat"))
    mean, covariance = (torch.tensor(parameters[f"pop_{part}"]) for part in ("mu", "cov"))
    return lambda images, _reference: compute_niqe(images, mean.ravel(), covariance)


def _package_file(package: str, name: str) -> Path:
    """A data file of an installed package, found without importing it."""
    found = [file for file in metadata.files(package) or [] if file.name == name]
    if not found:
        raise MetricError(f"The package {package} is installed without its file {name}; install it again.")
    return Path(str(found[0].locate()))
