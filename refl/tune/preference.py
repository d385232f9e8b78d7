"""Compute the losses of learning from preferences: dpo, gdpo and grpo; every one is a value per pair, group or step.

Errors are a restorer's mean squared denoising errors, dimensionless, of order 1; rewards and advantages have no unit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from reward.train.loss import preference_loss

LEAST_SPREAD = 1e-6
"""Of a group's rewards, against their mean: below it they differ by rounding alone."""


def compute_pair_loss(errors: Tensor, reference: Tensor, p_a: Tensor, beta: float) -> Tensor:
    """Diffusion-DPO's loss of labelled pairs, with soft labels.

    Args:
        errors: (2, B) of the restorer on images a and b, on the same noise at the same timestep.
        reference: (2, B) the same before training, without gradient.
        p_a: (B,) probability that a is better; 0.5 for a tie.
        beta: strength of a preference against the restorer before training.
    Returns:
        (B,) in nats; log 2 where nothing has changed.
    Source: arXiv:2311.12908, equation 14, its T · omega taken into beta.
    """
    left, right = -0.5 * beta * (errors - reference)
    return preference_loss(left, right, p_a)


def compute_group_loss(errors: Tensor, reference: Tensor, advantages: Tensor, beta: float) -> Tensor:
    """Group DPO's loss: pairwise DPO where a group is (+1, -1).

    Args:
        errors: (B, G) of the restorer on each image of a group, on the same noise at the same timestep.
        reference: (B, G) the same before training, without gradient.
        advantages: (B, G) of each image within its group, sum 0.
    Returns:
        (B,) in nats; log 2 where nothing has changed, or where a group's rewards are all alike.
    Source: GDPO-SR, arXiv:2603.16769.
    """
    return -logsigmoid(-0.5 * beta * (advantages * (errors - reference)).sum(dim=1))


def normalise_rewards(rewards: Tensor) -> Tensor:
    """(B, G) rewards as advantages: mean 0, standard deviation 1 within each group; 0 where a group's are all alike.

    The deviation is the population's, so that two different rewards become (+1, -1). Computed in float64: a group's
    rewards differ in their last digits, and advantages that do not sum to 0 would pull at all images alike.
    """
    exact = rewards.double()
    centred = exact - exact.mean(dim=1, keepdim=True)
    spread = centred.square().mean(dim=1, keepdim=True).sqrt()
    differs = spread > LEAST_SPREAD * exact.abs().mean(dim=1, keepdim=True)
    normalised = centred / spread.clamp_min(torch.finfo(spread.dtype).tiny)
    return torch.where(differs, normalised, torch.zeros_like(centred)).to(rewards.dtype)


def choose_ends(rewards: Tensor, count: int) -> Tensor:
    """(B, 2 * count) places in each group of its best images, the best first, then of its worst, the worst last.

    Args:
        rewards: (B, G); of equal ones the first counts as better.
    Source: DP²O-SR, arXiv:2510.18851, which compares the best with the worst of many samples.
    """
    order = rewards.argsort(dim=1, descending=True, stable=True)
    return torch.cat([order[:, :count], order[:, -count:]], dim=1)


def compute_log_probability(value: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """(N,) log density per number of (N, …) values under normal distributions, in nats.

    The mean over a value's numbers, not their sum, so that a clip range means the same at every size of image.

    Source: DDPO, arXiv:2305.13301, and its code.
    """
    squares = ((value - mean) / sigma).square().flatten(1).mean(dim=1)
    return -0.5 * squares - math.log(sigma) - 0.5 * math.log(2 * math.pi)


def compute_ratio_loss(
    log_probability: Tensor, before: Tensor, advantages: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """GRPO's clipped loss of steps of the sampler.

    Args:
        log_probability: (N,) of the steps that were taken, now, with gradient.
        before: (N,) as they were sampled.
        advantages: (N,) of the images that they led to.
    Returns:
        (N,) loss; its gradient where nothing has changed is REINFORCE's. (N,) ratios of probabilities.
    Source: PPO, arXiv:1707.06347, equation 7; group advantages as GRPO's, arXiv:2402.03300.
    """
    ratio = (log_probability - before).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped), ratio


def compute_step_divergence(mean: Tensor, reference: Tensor, sigma: float) -> Tensor:
    """(N,) divergence per number of normal distributions of one sigma: (m - m_ref)² / (2 sigma²), in nats; 0 at first.

    Source: the Kullback-Leibler divergence of two normal distributions; as in Flow-GRPO, arXiv:2505.05470.
    """
    return ((mean - reference) / sigma).square().flatten(1).mean(dim=1) / 2
