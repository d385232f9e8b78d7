"""The perceptual term of ReFL's loss: LPIPS-VGG where its weights can be had, GMSD, which needs no file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pyiqa
import torch
from torch import Tensor

from metrics.lists import MetricError
from metrics.weights import load_with_weights
from runs import UserError

PerceptualLoss = Callable[[Tensor, Tensor], Tensor]
"""(restored, hq), (N, 3, H, W) about [0, 1] -> (N,) distances, lower is better, with gradient to the first."""
NAMES = {"lpips": "lpips-vgg", "gmsd": "gmsd"}
"""pyiqa's names."""


def load_perceptual(
    kind: Literal["lpips", "gmsd"], device: torch.device | str, dtype: torch.dtype = torch.float32
) -> PerceptualLoss:
    """The distance of that name, its parameters frozen.

    Args:
        dtype: what LPIPS's convolutions compute in, which hold nearly all of its memory; all else is float32.
    Raises:
        UserError: its weights cannot be had here.
    """
    name = NAMES[kind]
    try:
        metric = load_with_weights(
            name, lambda: pyiqa.create_metric(name, as_loss=True, loss_reduction="none", device=device)
        )
    except MetricError as error:
        raise UserError(
            f"The perceptual term {kind} cannot be loaded. {error} Or set perceptual to gmsd, which needs no file: the "
            "run's record names it."
        ) from error
    metric.requires_grad_(False)

    def compute(restored: Tensor, hq: Tensor) -> Tensor:
        with torch.autocast(restored.device.type, dtype, enabled=kind == "lpips" and dtype != torch.float32):
            distances: Tensor = metric(restored.float(), hq.float())
        return distances.reshape(len(restored))

    return compute
