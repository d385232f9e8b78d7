"""Count what a training costs in network evaluations, so that algorithms are compared at equal cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from training.processes import add_up

WITH_GRADIENT = 3
"""Of a pass whose gradient is taken: going back multiplies by each matrix twice more."""


class Evaluations:
    """The images that have gone through a denoiser while `counting`: each once, three times where a gradient returns.

    What a checkpointed block computes again is not counted: it buys memory, not learning.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.total = 0
        """Over all processes, up to the last `add_up`."""
        self._new = 0
        self._counts = False
        denoiser.register_forward_hook(self._count)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what the block computes; the monitor's checks, say, stand outside."""
        self._counts = True
        try:
            yield
        finally:
            self._counts = False

    def add_up(self, accelerator: Accelerator) -> int:
        """Take all processes' new ones into the total, which is given. A collective."""
        self.total += add_up(accelerator, self._new)
        self._new = 0
        return self.total

    def _count(self, _module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if self._counts:
            first: Tensor = output[0] if isinstance(output, tuple) else output.sample
            self._new += len(given[0]) * (WITH_GRADIENT if first.requires_grad else 1)
