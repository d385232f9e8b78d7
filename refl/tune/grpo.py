"""Take GRPO's steps: make those steps of the sampler more probable that led to the better images of a photo.

Source: GRPO, arXiv:2402.03300, on a diffusion sampler as DDPO, arXiv:2305.13301, and Flow-GRPO, arXiv:2505.05470.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from refl.restorers.diffusion import DiffusionRestorer
from refl.tune.draws import draw_places, draw_trajectory
from refl.tune.errors import predict_before
from refl.tune.groups import Group, sample_groups
from refl.tune.parts import FacePart
from refl.tune.preference import (
    compute_log_probability,
    compute_ratio_loss,
    compute_step_divergence,
    normalise_rewards,
)
from refl.tune.sampling import Trajectory
from refl.tune.sums import add_sums, count_batch
from refl.tune.training import Training


def take_grpo_step(training: Training, step: int, parts: Sequence[FacePart]) -> tuple[dict[str, float], list[Tensor]]:
    """Sample once, then take the optimizer steps, each on its share of the denoising steps.

    See `refl.tune.train.train_step`.
    """
    weights, config = training.weights, training.config
    batch = count_batch(training, step)
    trajectory, places = draw_trajectory(training, step), draw_places(training, step)
    groups = sample_groups(training, parts, trajectory, step, places)
    norms = []
    for share in np.array_split(places, min(config.algorithm.updates, len(places))):
        for group in groups:
            for place in share.tolist():
                losses, told = compute_step_losses(training, group, trajectory, place)
                weights.backward(losses.sum() / (batch * len(share)))
                rewards = group.rewards
                add_sums(
                    training,
                    [losses, rewards.mean(dim=1), rewards.std(dim=1, correction=0), *told],
                    turns=len(places),
                )
        norms.append(weights.step(training.accelerator, config.train.max_gradient_norm, step + 1))
    return {"gradient_norm": float(np.mean(norms))}, [group.first for group in groups]


def compute_step_losses(
    training: Training, group: Group, trajectory: Trajectory, place: int
) -> tuple[Tensor, list[Tensor]]:
    """The loss of one denoising step of a group's images, with gradient.

    Returns:
        (B,) means over each photo's images; (B,) each of the divergence where it counts, the ratio, and the share that
        was clipped.
    """
    restorer, algorithm, taken = training.restorer, training.config.algorithm, group.sampled.steps[place]
    assert isinstance(restorer, DiffusionRestorer)  # checked as training starts
    timestep, following = trajectory.plan[place]
    eta, count = trajectory.etas[place], len(group.rewards)
    embedding = training.embedding.expand(len(taken.before), -1, -1)
    inputs = (taken.before, torch.full((), timestep, device=taken.before.device), group.sampled.condition, embedding)
    mean, sigma = restorer.distribute_step(taken.before, timestep, following, restorer.predict_output(*inputs), eta)
    advantages = normalise_rewards(group.rewards).flatten()
    losses, ratio = compute_ratio_loss(
        compute_log_probability(taken.after, mean, sigma),
        taken.log_probability,
        advantages,
        algorithm.clip_range,
    )
    told = []
    if algorithm.kl_weight:
        output = predict_before(training, restorer, *inputs)
        reference, _ = restorer.distribute_step(taken.before, timestep, following, output, eta)
        divergence = compute_step_divergence(mean, reference, sigma)
        losses = losses + algorithm.kl_weight * divergence
        told.append(divergence)
    clipped = ((ratio - 1).abs() > algorithm.clip_range).float()
    losses, *told = (values.view(count, -1).mean(dim=1) for values in (losses, *told, ratio, clipped))
    return losses, told
