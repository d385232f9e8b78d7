"""Add up what progress lines tell, over steps, micro-batches and processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from refl.tune.training import Training, list_sums
from training.batches import choose_batch
from training.processes import sum_tensors


def count_batch(training: Training, step: int) -> int:
    """Number of faces or pairs of a step, over all processes."""
    config = training.config.train
    return len(choose_batch(step, training.count, config.batch_size, config.seed))


def add_sums(training: Training, values: Sequence[Tensor], turns: int = 1) -> None:
    """Add (N,) values of each of `list_sums`, in its order, to the sums since the last progress line.

    Args:
        turns: how often a step adds values of the same N, which then count as one.
    """
    stacked = torch.stack(list(values)).detach().double()
    training.sums[:-1] += stacked.sum(dim=1) / turns
    training.sums[-1] += stacked.shape[1] / turns


def take_means(training: Training) -> dict[str, float]:
    """The mean of each of `list_sums` over all rows and processes since the last call, the sum of the loss's terms.

    Of refl also the mean reward. A collective.
    """
    config, sums = training.config, training.sums.clone()
    names = list_sums(config, training.live)
    sum_tensors(training.accelerator, [sums])
    *totals, rows = sums.tolist()
    training.sums.zero_()
    values = {name: total / rows for name, total in zip(names, totals, strict=True)}
    values["loss"] = sum(value for name, value in values.items() if name.startswith("loss/"))
    if "loss/reward" in names:
        values["reward"] = 1 - values["loss/reward"] / config.loss.reward_weight
    return values
