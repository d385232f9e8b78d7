"""Swap the EMA weights in for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from training.precision import copy_values


@contextmanager
def averaged_weights(parameters: Sequence[Tensor], averages: Sequence[Tensor]) -> Iterator[None]:
    """The block sees the averages in place of the parameters; without averages it sees the parameters."""
    if not averages:
        yield
        return
    kept = [parameter.detach().clone() for parameter in parameters]
    copy_values(parameters, averages)
    try:
        yield
    finally:
        copy_values(parameters, kept)
