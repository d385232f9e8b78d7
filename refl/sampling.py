"""A ReFL trajectory: denoise without gradient to a drawn step, and from there to clean latents with gradient.

Every random number follows from seeds, one an image: a batch gives what its images give alone, and a training that is
continued sees the noise that it would have seen.

Sources: ReFL (arXiv:2304.05977, algorithm 1) as DiffusionReward uses it; going on with gradient to the end is DRaFT-K,
re-noising DRaFT-LV (arXiv:2309.17400, sections 4.1 and 4.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refl.restorers.control import ConditionControlNet
from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.osediff import OSEDiff
from refl.restorers.surface import draw_from

Plan = Sequence[tuple[int, int]]
"""(timestep, the one after it) of each step; -1 after the last."""


@dataclass(frozen=True)
class Inputs:
    """What the steps of a trajectory share, computed once an image."""

    condition: Tensor
    """(N, c, h, w) latents of what is restored."""
    embedding: Tensor
    """(N, T, C) of the prompts."""
    cleaned: Tensor
    """(N, 3, H, W) stage 1's image, whose colours the colour fix gives back."""


@dataclass(frozen=True)
class Trajectory:
    """One draw: which way the latents go, and where the gradient begins."""

    plan: Plan
    etas: Sequence[float]
    """DDIM's eta of each step of the plan: how much fresh noise it adds."""
    gradient_index: int
    """The first step with gradient, counted from the end: 0 is the last."""
    unroll: bool = False
    """Go on with gradient from there to the end, instead of predicting the clean latents at once."""
    renoise: int = 0
    """Run to the end without gradient, then noise the result anew this often, each time to the gradient's step."""


@dataclass(frozen=True)
class Outcome:
    """What the part with gradient gave."""

    x0: Tensor
    """(N, c, h, w) clean latents."""
    cleaned: Tensor
    """(N, 3, H, W) whose colours the colour fix gives back."""
    residuals: tuple[Tensor, ...]
    """What the ControlNet put out at the first step with gradient."""
    frozen: tuple[Tensor, ...]
    """What the frozen one puts out there, without gradient; empty where none was given."""


def iterate_outcomes(
    restorer: DiffusionRestorer | OSEDiff,
    lq: Tensor,
    embedding: Tensor,
    trajectory: Trajectory,
    generators: Sequence[torch.Generator],
    frozen_control: ConditionControlNet | None = None,
) -> Iterator[Outcome]:
    """One outcome, or `renoise` of them, each with a graph of its own: call backward before taking the next.

    OSEDiff's one step has its gradient from the encoder on, and neither noise nor a ControlNet.

    Args:
        lq: (N, 3, H, W) in [0, 1].
        embedding: (1, T, C) of the restorer's prompt, the same for all images.
        generators: one an image, for the start's noise and all that comes after.
        frozen_control: the ControlNet before training; it runs at the first step with gradient and nowhere else.
    """
    embedding = embedding.expand(len(lq), -1, -1)
    if isinstance(restorer, OSEDiff):
        condition = restorer.encode_condition(lq)
        yield Outcome(restorer.predict_x0(condition, restorer.predict_noise(condition, embedding)), lq, (), ())
        return
    with torch.no_grad():
        cleaned = restorer.clean(lq)
        inputs = Inputs(restorer.encode_pixels(cleaned), embedding, cleaned)
        latents = denoise(restorer, inputs, trajectory, generators)
    if not trajectory.renoise:
        yield follow(restorer, inputs, latents, trajectory, generators, frozen_control)
        return
    timestep, _ = trajectory.plan[len(trajectory.plan) - 1 - trajectory.gradient_index]
    alpha = restorer.alphas[timestep]
    for _ in range(trajectory.renoise):
        noise = draw_from(generators, latents.shape[1:], latents.device)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        yield follow(restorer, inputs, noisy, trajectory, generators, frozen_control)


def denoise(
    restorer: DiffusionRestorer, inputs: Inputs, trajectory: Trajectory, generators: Sequence[torch.Generator]
) -> Tensor:
    """The latents at the gradient's step, or clean ones where they are to be noised anew."""
    plan, etas = list(trajectory.plan), list(trajectory.etas)
    noise = draw_from(generators, inputs.condition.shape[1:], inputs.condition.device)
    latents = restorer.start(inputs.condition, noise, plan[0][0])
    count = len(plan) if trajectory.renoise else len(plan) - 1 - trajectory.gradient_index
    for step, eta in zip(plan[:count], etas[:count], strict=True):
        latents = take_step(restorer, inputs, latents, step, eta, generators)
    return latents


def follow(
    restorer: DiffusionRestorer,
    inputs: Inputs,
    latents: Tensor,
    trajectory: Trajectory,
    generators: Sequence[torch.Generator],
    frozen_control: ConditionControlNet | None,
) -> Outcome:
    """From the latents at the gradient's step to clean ones, with gradient."""
    stop = len(trajectory.plan) - 1 - trajectory.gradient_index
    timestep, _ = trajectory.plan[stop]
    at = torch.tensor(timestep, device=latents.device)
    residuals = restorer.compute_control(latents, at, inputs.condition, inputs.embedding)
    frozen: tuple[Tensor, ...] = ()
    if frozen_control is not None:
        with torch.no_grad():
            frozen = restorer.compute_control(latents, at, inputs.condition, inputs.embedding, frozen_control)
    output = restorer.predict_output(latents, at, inputs.condition, inputs.embedding, residuals)
    if not trajectory.unroll:
        return Outcome(restorer.to_x0(latents, at, output), inputs.cleaned, residuals, frozen)
    steps, etas = trajectory.plan[stop:], trajectory.etas[stop:]
    latents = apply_output(restorer, latents, steps[0], output, etas[0], generators)
    for step, eta in zip(steps[1:], etas[1:], strict=True):
        latents = take_step(restorer, inputs, latents, step, eta, generators)
    return Outcome(latents, inputs.cleaned, residuals, frozen)


def take_step(
    restorer: DiffusionRestorer,
    inputs: Inputs,
    latents: Tensor,
    step: tuple[int, int],
    eta: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """The latents after one step of denoising."""
    at = torch.tensor(step[0], device=latents.device)
    output = restorer.predict_output(latents, at, inputs.condition, inputs.embedding)
    return apply_output(restorer, latents, step, output, eta, generators)


def apply_output(
    restorer: DiffusionRestorer,
    latents: Tensor,
    step: tuple[int, int],
    output: Tensor,
    eta: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """The DDIM step of what the denoiser gave, noise or v; no noise is drawn where eta is 0."""
    at = torch.tensor(step[0], device=latents.device)
    noise = draw_from(generators, latents.shape[1:], latents.device) if eta > 0 else None
    noise_pred, x0 = restorer.to_noise(latents, at, output), restorer.to_x0(latents, at, output)
    return restorer.step(latents, *step, noise_pred, eta, noise, x0)
