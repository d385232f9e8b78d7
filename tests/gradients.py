"""See the gradients that optimizer steps are taken with: what processes and micro-batches must not change.

Weights are no measure: AdamW takes a step of full length where a gradient is mere rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import training.precision


@contextmanager
def record_gradients(keep: Callable[[list[Tensor]], None]) -> Iterator[None]:
    """Call `keep` with the gradients of every optimizer step, summed over processes, before they are clipped."""
    clip = training.precision.nn.utils.clip_grad_norm_

    def look_and_clip(parameters: Any, *arguments: Any) -> Tensor:
        keep([parameter.grad.detach().clone() for parameter in parameters])
        return clip(parameters, *arguments)

    training.precision.nn.utils.clip_grad_norm_ = look_and_clip
    try:
        yield
    finally:
        training.precision.nn.utils.clip_grad_norm_ = clip


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The length of the difference of two gradients against the length of the first."""
    apart = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(one, other, strict=True))
    return float((torch.tensor(apart) / sum(float(a.double().square().sum()) for a in one)).sqrt())
