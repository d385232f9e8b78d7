"""Compute the terms of ReFL's loss. Every term is one value per image, so that batches of any size add up exactly.

Images are (N, 3, H, W) RGB, about [0, 1] and not clamped. The weights of the terms are the training's; see
`refl/tune/config.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from refl.tune.low_pass import compute_low_pass


def compute_change(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """Compute how far outputs are from those before training: the sum over outputs of mean squares.

    Args:
        outputs, reference: in order, (N, C, H, W) each: the ControlNet's 13 outputs as published; of adapters the one
            output of the denoiser.
    Returns:
        (N,) 0 where nothing changed.
    Raises:
        ValueError: other numbers of outputs.
    Source: DiffusionReward's regularizer, which compares outputs, not weights.
    """
    squares = [
        (ours.float() - theirs.float()).square().mean(dim=(1, 2, 3))
        for ours, theirs in zip(outputs, reference, strict=True)
    ]
    return torch.stack(squares).sum(dim=0)


def compute_structure_loss(restored: Tensor, hq: Tensor) -> Tensor:
    """(N,) mean absolute difference of the DTCWT's low bands, three levels.

    On a large image its gain at frequency 0 is 4, and a sample of it covers 4 × 4 pixels.

    Source: DiffusionReward, after sxpro/RFSR.
    """
    return (compute_low_pass(restored) - compute_low_pass(hq)).abs().mean(dim=(1, 2, 3))


def compute_pull(spread: Tensor, held_out_spread: float, strength: float) -> Tensor:
    """(N,) factors on the regularizer, 1 where a reward set's members agree as on held-out images, more where less.

    Args:
        spread: (N,) over members, of the images of this step; no gradient goes through it.
        held_out_spread: its mean on held-out images.
        strength: what the factor grows by for each time that the spread is larger than that.
    Source: GARDO, arXiv:2512.24138, which regularises only where rewards disagree.
    """
    return 1 + strength * (spread.detach() / held_out_spread - 1).clamp_min(0)


def compute_reward_loss(rewards: Tensor) -> Tensor:
    """(N,) 1 - cosine, without the logit scale, as DiffusionReward has it."""
    return 1 - rewards
