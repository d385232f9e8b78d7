"""A training's running average of its weights, put in the weights' place for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def averaged_weights(parameters: Sequence[Tensor], averages: Sequence[Tensor]) -> Iterator[None]:
    """The block sees the averages in place of the parameters; without averages it sees the parameters."""
    if not averages:
        yield
        return
    kept = [parameter.detach().clone() for parameter in parameters]
    copy_into(parameters, averages)
    try:
        yield
    finally:
        copy_into(parameters, kept)


@torch.no_grad()
def copy_into(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Overwrite parameters."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
