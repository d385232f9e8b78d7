"""Take Diffusion-DPO's steps: labelled pairs alone, without a reward model and without restoring anything.

Source: arXiv:2311.12908, with soft labels, weights, and the low-quality photo as the condition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from refl.tune.errors import compute_errors
from refl.tune.parts import PairPart
from refl.tune.preference import compute_pair_loss
from refl.tune.sums import add_sums, count_batch
from refl.tune.training import Training


def take_dpo_step(training: Training, step: int, parts: Sequence[PairPart]) -> tuple[dict[str, float], list[Tensor]]:
    """One optimizer step over the pairs of all processes; see `refl.tune.train.train_step`."""
    weights, config = training.weights, training.config
    batch = count_batch(training, step)
    for part in parts:
        errors, reference = compute_errors(training, step, part.places, part.photos, part.images)
        errors, reference = errors.T, reference.T
        losses = part.label_weights * compute_pair_loss(errors, reference, part.p_a, config.algorithm.beta)
        weights.backward(losses.sum() / batch)
        implied = -0.5 * config.algorithm.beta * (errors.detach() - reference)
        better, worse = torch.where(part.p_a >= 0.5, implied, implied.flip(0))  # of a tie, a and b
        credit = torch.where(part.p_a == 0.5, 0.5, ((better > worse).float() + (better >= worse).float()) / 2)
        add_sums(training, [losses, better, worse, better - worse, credit])
    norm = weights.step(training.accelerator, config.train.max_gradient_norm, step + 1)
    return {"gradient_norm": norm}, []
