"""Compute the loss of labelled pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def preference_loss(left: Tensor, right: Tensor, p: Tensor) -> Tensor:
    """Cross-entropy of a two-way softmax over both images' logits with the label's probability; HPSv2 sums over pairs.

    Swapping the images and taking 1 − p gives exactly the same values and gradients.

    Args:
        left, right: (B,) logits, logit_scale · cosine, unbounded.
        p: (B,) probability that the left image is better, 0 … 1; 0.5 for a tie.
    Returns:
        (B,) a pair's loss in nats; log 2 where the logits are equal.
    Raises:
        ValueError: shapes differ (broadcasting would hide it).
    Source: Bradley & Terry 1952; HPSv2, arXiv:2306.09341, with soft labels.
    """
    if not left.shape == right.shape == p.shape:
        raise ValueError(f"Shapes differ: left {left.shape}, right {right.shape}, p {p.shape}; give one per pair.")
    margin = left - right
    p_right = 1 - p
    p_left = 1 - p_right  # p; rounded as 1 − p is, so that the swapped pair has the same two weights
    return -(p_left * logsigmoid(margin) + p_right * logsigmoid(-margin))


def compute_losses(logits: Tensor, p_a: Tensor, label_weights: Tensor) -> Tensor:
    """(B,) losses of pairs in nats: the mean over members, each by its own weights.

    Args:
        logits: (members, 2, B) of images a and b.
        p_a: (B,) probability that a is better.
        label_weights: (members, B).
    """
    members = [preference_loss(left, right, p_a) for left, right in logits]
    return (label_weights * torch.stack(members)).mean(dim=0)
