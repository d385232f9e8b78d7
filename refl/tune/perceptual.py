"""Compute the perceptual term of ReFL's loss: LPIPS-VGG where its weights can be had, GMSD, which needs no file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from db.errors import UserError
from metrics.fidelity import compute_gmsd
from metrics.lists import MetricError
from metrics.load import load_differentiable

PerceptualLoss = Callable[[Tensor, Tensor], Tensor]
"""(restored, hq), (N, 3, H, W) about [0, 1] -> (N,) distances, lower is better, with gradient to the first."""
LPIPS = "lpips-vgg"
"""pyiqa's name."""


def load_perceptual(kind: Literal["lpips", "gmsd"], device: torch.device | str) -> PerceptualLoss:
    """The distance of that name, its parameters frozen; it computes in float32.

    In bfloat16 VGG's gradient is another: with random weights its cosine with float32's was 0.94 at 512 px.

    Raises:
        UserError: its weights cannot be had here.
    """
    if kind == "gmsd":
        return lambda restored, hq: compute_gmsd(restored.float(), hq.float())
    try:
        metric = load_differentiable(LPIPS, str(device))
    except MetricError as error:
        raise UserError(
            f"The perceptual term {kind} cannot be loaded. {error} Or set perceptual to gmsd, which needs no file and "
            "no pyiqa: the run's record names it."
        ) from error

    def compute(restored: Tensor, hq: Tensor) -> Tensor:
        distances: Tensor = metric(restored.float(), hq.float())
        return distances.reshape(len(restored))

    return compute
