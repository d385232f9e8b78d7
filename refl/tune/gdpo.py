"""Take group DPO's steps: groups of restored images of one photo, their denoising errors weighted by their rewards."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from refl.restorers.one_step import OneStepRestorer
from refl.tune.draws import draw_trajectory
from refl.tune.errors import compute_errors
from refl.tune.groups import Group, sample_groups
from refl.tune.parts import FacePart
from refl.tune.preference import choose_ends, compute_group_loss, normalise_rewards
from refl.tune.sums import add_sums, count_batch
from refl.tune.training import Training


def take_gdpo_step(training: Training, step: int, parts: Sequence[FacePart]) -> tuple[dict[str, float], list[Tensor]]:
    """One optimizer step over all groups of all processes; see `refl.tune.train.train_step`."""
    weights, config = training.weights, training.config
    batch = count_batch(training, step)
    restored = []
    for group in sample_groups(training, parts, draw_trajectory(training, step), step):
        advantages, images = choose_images(group, config.algorithm.group_ends)
        photos = group.part.lq if isinstance(training.restorer, OneStepRestorer) else group.conditions
        errors, reference = compute_errors(training, step, group.part.places, photos, images)
        losses = compute_group_loss(errors, reference, advantages, config.algorithm.beta)
        weights.backward(losses.sum() / batch)
        rising = (advantages * (reference - errors).detach()).sum(dim=1)
        credit = ((rising > 0).float() + (rising >= 0).float()) / 2  # half where nothing has changed, as in dpo
        add_sums(
            training,
            [losses, group.rewards.mean(dim=1), group.rewards.std(dim=1, correction=0), credit],
        )
        restored.append(group.first)
    norm = weights.step(training.accelerator, config.train.max_gradient_norm, step + 1)
    return {"gradient_norm": norm}, restored


def choose_images(group: Group, ends: int) -> tuple[Tensor, Tensor]:
    """(B, G') advantages and (B, G', c, h, w) latents: of the whole group, or of its best and worst."""
    if not ends:
        return normalise_rewards(group.rewards), group.x0
    places = choose_ends(group.rewards, ends)
    rows = places[:, :, None, None, None].expand(-1, -1, *group.x0.shape[2:])
    return normalise_rewards(group.rewards.gather(1, places)), group.x0.gather(1, rows)
