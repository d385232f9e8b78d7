"""Compute denoising errors of images, by the restorer as it is and as it was before training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.one_step import OneStepRestorer
from refl.restorers.surface import draw_ahead, make_generators
from refl.tune.draws import draw_timesteps, noise_seed
from refl.tune.sampling import restore_once
from refl.tune.training import Training


def compute_errors(
    training: Training, step: int, places: Sequence[int], photos: Tensor, images: Tensor
) -> tuple[Tensor, Tensor]:
    """How badly the restorer of a photo denoises what became of it: the less, the more probable it makes that image.

    Images of one photo share noise and timestep. A restorer of one step predicts the clean latents from the photo; its
    error is the distance to the image's, in the units of noise at its timestep.

    Args:
        step, places: of training; they decide noise and timesteps.
        photos: (B, 3, H, W) in [0, 1] for a restorer of one step; (B, c, h, w) the conditions' latents for others.
        images: (B, G, c, h, w) clean latents of G images of each photo, without gradient.
    Returns:
        (B, G) mean squared errors, with gradient; (B, G) the same before training, without.
    """
    if isinstance(training.restorer, OneStepRestorer):
        return _compare_once(training, training.restorer, step, places, photos, images)
    return _compare_noised(training, training.restorer, step, places, photos, images)


def _compare_once(
    training: Training,
    restorer: OneStepRestorer,
    step: int,
    places: Sequence[int],
    photos: Tensor,
    images: Tensor,
) -> tuple[Tensor, Tensor]:
    seeds = [noise_seed(training.config.train.seed, step, place) for place in places]
    drawn = restorer.draw_noise(photos, make_generators(seeds))
    signal, noise = restorer.noise_scales(restorer.use.timestep)

    def compare() -> Tensor:
        given = restorer.embed(photos, training.embedding.expand(len(photos), -1, -1))
        condition = restorer.add_noise(restorer.encode_condition(photos), drawn)
        difference: Tensor = (restore_once(restorer, condition, given)[:, None] - images) * (signal / noise)
        return difference.square().flatten(2).mean(dim=2)

    with torch.no_grad(), restorer.without_adapters():
        reference = compare()
    return compare(), reference


def _compare_noised(
    training: Training,
    restorer: DiffusionRestorer,
    step: int,
    places: Sequence[int],
    conditions: Tensor,
    images: Tensor,
) -> tuple[Tensor, Tensor]:
    count, group, *shape = images.shape
    device, seed = images.device, training.config.train.seed
    drawn = draw_timesteps(training, step, places)
    timesteps = torch.tensor(drawn).to(device, non_blocking=True).repeat_interleave(group)
    scales = torch.tensor([restorer.noise_scales(timestep) for timestep in drawn])
    signal, scale = scales.to(device, non_blocking=True).T.reshape(2, count, 1, 1, 1, 1)
    generators = make_generators([noise_seed(seed, step, place) for place in places])
    noise = next(draw_ahead(generators, shape, 1, device))[:, None].expand_as(images)
    noised = (signal * images + scale * noise).flatten(0, 1)
    target = noise if restorer.use.prediction == "epsilon" else signal * noise - scale * images
    embedding = training.embedding.expand(len(noised), -1, -1)
    inputs = (noised, timesteps, conditions.repeat_interleave(group, dim=0), embedding)

    def compare(output: Tensor) -> Tensor:
        return (output.view_as(images) - target).square().flatten(2).mean(dim=2)

    return compare(restorer.predict_output(*inputs)), compare(predict_before(training, restorer, *inputs))


@torch.no_grad()
def predict_before(
    training: Training,
    restorer: DiffusionRestorer,
    latents: Tensor,
    timesteps: Tensor,
    condition: Tensor,
    embedding: Tensor,
) -> Tensor:
    """(N, c, h, w) the denoiser's output before training: by the frozen ControlNet, or with adapters off."""
    if training.frozen_control is None:
        with restorer.without_adapters():
            return restorer.predict_output(latents, timesteps, condition, embedding)
    residuals = restorer.compute_control(latents, timesteps, condition, embedding, training.frozen_control)
    return restorer.predict_output(latents, timesteps, condition, embedding, residuals)
