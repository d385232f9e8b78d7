"""Sample trajectories: denoise without gradient to a drawn step, and from there to clean latents with gradient.

The part without gradient takes a whole batch at once, the part with gradient as many images as memory holds. Every
random number follows from seeds, one per image: a batch gives what its images give alone, and a training that is
continued sees the noise that it would have seen. All of a trajectory's noise is drawn before its first step.

Sources: ReFL (arXiv:2304.05977, algorithm 1) as DiffusionReward uses it; going on with gradient to the end is DRaFT-K,
re-noising DRaFT-LV (arXiv:2309.17400, sections 4.1 and 4.2).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refl.published.control import ConditionControlNet
from refl.restorers.diffusion import DiffusionRestorer, count_noises
from refl.restorers.one_step import OneStepRestorer
from refl.restorers.surface import draw_ahead
from refl.tune.preference import compute_log_probability

Tunable = DiffusionRestorer | OneStepRestorer
"""The restorers that can learn."""
Plan = Sequence[tuple[int, int]]
"""(timestep, the one after it) of each step; -1 after the last."""


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
    """After a full trajectory, re-noise the result this many times for gradient steps (DRaFT-LV)."""

    @property
    def gradient_place(self) -> int:
        """The place in the plan of the first step with gradient."""
        return len(self.plan) - 1 - self.gradient_index


@dataclass(frozen=True)
class Rollout:
    """State of N images before their steps with gradient. Nothing of it has a gradient."""

    cleaned: Tensor
    """(N, 3, H, W) stage 1's image, whose colours the colour fix gives back; a one-step restorer's input."""
    embedding: Tensor
    """(N, T, C) of the prompts."""
    condition: Tensor
    """(N, c, h, w) latents of what is restored; empty for one step, whose gradient begins at the encoder."""
    latents: Tensor
    """(N, c, h, w) at the gradient's step; clean ones where they are to be re-noised; empty for one step."""
    noises: Sequence[Tensor]
    """(N, c, h, w) each, what the steps with gradient will take."""

    def select(self, start: int, stop: int) -> Rollout:
        """The images from `start` up to `stop`."""
        return Rollout(
            self.cleaned[start:stop],
            self.embedding[start:stop],
            self.condition[start:stop],
            self.latents[start:stop],
            [noise[start:stop] for noise in self.noises],
        )


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """The images of all, in order."""
    return Rollout(
        torch.cat([one.cleaned for one in rollouts]),
        torch.cat([one.embedding for one in rollouts]),
        torch.cat([one.condition for one in rollouts]),
        torch.cat([one.latents for one in rollouts]),
        [torch.cat(noise) for noise in zip(*(one.noises for one in rollouts), strict=True)],
    )


@dataclass(frozen=True)
class Outcome:
    """Result of the part with gradient."""

    x0: Tensor
    """(N, c, h, w) clean latents."""
    cleaned: Tensor
    """(N, 3, H, W) whose colours the colour fix gives back."""
    compared: tuple[Tensor, ...]
    """Outputs that the regularizer compares: the ControlNet's, or the denoiser's where adapters are trained."""
    reference: tuple[Tensor, ...]
    """The same before training, without gradient; empty where there is no regularizer."""


@torch.no_grad()
def roll_out(
    restorer: Tunable,
    lq: Tensor,
    embedding: Tensor,
    trajectory: Trajectory,
    generators: Sequence[torch.Generator],
) -> Rollout:
    """Denoise a batch to the step where its gradient begins.

    Args:
        lq: (N, 3, H, W) in [0, 1].
        embedding: (1, T, C) of the restorer's prompt, the same for all images.
        generators: one per image, for the start's noise and all that comes after.
    """
    embedding = embedding.expand(len(lq), -1, -1)
    if isinstance(restorer, OneStepRestorer):
        noise = restorer.draw_noise(lq, generators)
        return Rollout(lq, embedding, lq[:, :0], lq[:, :0], [] if noise is None else [noise])
    plan, etas, later = trajectory.plan, trajectory.etas, trajectory.renoise
    stop = None if trajectory.renoise else trajectory.gradient_place
    if trajectory.unroll:
        later = (later or 1) * count_noises(etas[trajectory.gradient_place :]) + later
    rolled = restorer.roll_out(lq, embedding, plan, etas, generators, stop=stop, later=later)
    cleaned, condition, latents, noises = rolled
    return Rollout(cleaned, embedding, condition, latents, list(noises))


def iterate_outcomes(
    restorer: Tunable,
    rollout: Rollout,
    trajectory: Trajectory,
    *,
    regularize: bool = False,
    frozen_control: ConditionControlNet | None = None,
) -> Iterator[Outcome]:
    """One outcome, or `renoise` of them, each with a graph of its own: call backward before taking the next.

    Args:
        regularize: whether to compute what the regularizer compares with: with `frozen_control`, the ControlNet before
            training, its outputs; without, the denoiser's output (one step's clean latents) with adapters off.
    """
    if isinstance(restorer, OneStepRestorer):
        yield _follow_one_step(restorer, rollout, regularize)
        return
    noises = iter(rollout.noises)
    signal, noise = restorer.noise_scales(trajectory.plan[trajectory.gradient_place][0])
    for _ in range(trajectory.renoise or 1):
        latents = signal * rollout.latents + noise * next(noises) if trajectory.renoise else rollout.latents
        yield _follow(restorer, rollout, latents, noises, trajectory, regularize, frozen_control)


def _follow(
    restorer: DiffusionRestorer,
    rollout: Rollout,
    latents: Tensor,
    noises: Iterator[Tensor],
    trajectory: Trajectory,
    regularize: bool,
    frozen_control: ConditionControlNet | None,
) -> Outcome:
    """From the latents at the gradient's step to clean ones, with gradient."""
    place = trajectory.gradient_place
    step, eta = trajectory.plan[place], trajectory.etas[place]
    at = torch.tensor(step[0], device=latents.device)
    inputs = (latents, at, rollout.condition, rollout.embedding)
    compared: tuple[Tensor, ...] = ()
    reference: tuple[Tensor, ...] = ()
    if regularize and frozen_control is not None:
        with torch.no_grad():
            reference = restorer.compute_control(*inputs, frozen_control)
    elif regularize:
        with torch.no_grad(), restorer.without_adapters():
            reference = (restorer.predict_output(*inputs),)
    residuals = restorer.compute_control(*inputs)
    output = restorer.predict_output(*inputs, residuals)
    if regularize:
        compared = residuals if frozen_control is not None else (output,)
    if not trajectory.unroll:
        return Outcome(restorer.to_x0(latents, step[0], output), rollout.cleaned, compared, reference)
    latents = restorer.step(latents, *step, output, eta, next(noises) if eta > 0 else None)
    plan, etas = trajectory.plan[place + 1 :], trajectory.etas[place + 1 :]
    latents = restorer.denoise(latents, plan, etas, rollout.condition, rollout.embedding, noises)
    return Outcome(latents, rollout.cleaned, compared, reference)


def _follow_one_step(restorer: OneStepRestorer, rollout: Rollout, regularize: bool) -> Outcome:
    """The one step, with gradient from the encoder on; there is no ControlNet."""
    inputs = (rollout.cleaned, rollout.embedding, *rollout.noises)
    reference: tuple[Tensor, ...] = ()
    if regularize:
        with torch.no_grad(), restorer.without_adapters():
            reference = (restorer.restore_latents(*inputs),)
    x0 = restorer.restore_latents(*inputs)
    return Outcome(x0, rollout.cleaned, (x0,) if regularize else (), reference)


@dataclass(frozen=True)
class Taken:
    """One step of the sampler, as it was taken for N images."""

    before: Tensor
    """(N, c, h, w) latents; after too."""
    after: Tensor
    log_probability: Tensor
    """(N,) per number; see `refl.tune.preference.compute_log_probability`."""

    def select(self, start: int, stop: int) -> Taken:
        """Of the images from `start` up to `stop`."""
        return Taken(self.before[start:stop], self.after[start:stop], self.log_probability[start:stop])


@dataclass(frozen=True)
class Sampled:
    """Restored latents of N images, and steps that led to them, none with a gradient."""

    cleaned: Tensor
    """(N, 3, H, W) whose colours the colour fix gives back."""
    condition: Tensor
    """(N, c, h, w) latents of what was restored."""
    x0: Tensor
    """(N, c, h, w) clean latents."""
    steps: dict[int, Taken]
    """By place in the plan: those that were asked for."""

    def select(self, start: int, stop: int) -> Sampled:
        """The images from `start` up to `stop`."""
        steps = {place: taken.select(start, stop) for place, taken in self.steps.items()}
        return Sampled(self.cleaned[start:stop], self.condition[start:stop], self.x0[start:stop], steps)


def join_sampled(sampled: Sequence[Sampled]) -> Sampled:
    """The images of all, in order."""
    steps = {
        place: Taken(
            torch.cat([one.steps[place].before for one in sampled]),
            torch.cat([one.steps[place].after for one in sampled]),
            torch.cat([one.steps[place].log_probability for one in sampled]),
        )
        for place in sampled[0].steps
    }
    return Sampled(
        torch.cat([one.cleaned for one in sampled]),
        torch.cat([one.condition for one in sampled]),
        torch.cat([one.x0 for one in sampled]),
        steps,
    )


@torch.no_grad()
def sample(
    restorer: Tunable,
    lq: Tensor,
    embedding: Tensor,
    trajectory: Trajectory,
    generators: Sequence[torch.Generator],
    *,
    places: Collection[int] = (),
    noise_timestep: int = 0,
    start_generators: Sequence[torch.Generator] | None = None,
) -> Sampled:
    """Restore latents as `restore` does, each image by its own noise.

    Args:
        lq: (N, 3, H, W) in [0, 1].
        embedding: (1, T, C) of the restorer's prompt.
        generators: one per image.
        places: steps of the plan to keep; each with noise.
        noise_timestep: of a restorer of one step that draws no noise, the timestep whose noise is added to the photo's
            latents, so that its results differ; 0 for none.
        start_generators: one per image, of the noise that a trajectory starts from, where not of its own.
    """
    embedding = embedding.expand(len(lq), -1, -1)
    if isinstance(restorer, OneStepRestorer):
        condition = restorer.encode_condition(lq)
        if restorer.is_random:
            noised = restorer.add_noise(condition, restorer.draw_noise(lq, generators))
        else:
            noised = condition
            if noise_timestep:
                signal, scale = restorer.noise_scales(noise_timestep)
                noised = signal * condition + scale * next(draw_ahead(generators, condition.shape[1:], 1, lq.device))
        return Sampled(lq, condition, restore_once(restorer, noised, restorer.embed(lq, embedding)), {})
    kept: dict[int, Taken] = {}

    def keep(place: int, before: Tensor, after: Tensor, mean: Tensor, sigma: float) -> None:
        if place in places:
            kept[place] = Taken(before, after, compute_log_probability(after, mean, sigma))

    plan, etas = trajectory.plan, trajectory.etas
    cleaned, condition, x0, _ = restorer.roll_out(
        lq, embedding, plan, etas, generators, on_step=keep, start_generators=start_generators
    )
    return Sampled(cleaned, condition, x0, kept)


def restore_once(restorer: OneStepRestorer, condition: Tensor, embedding: Tensor) -> Tensor:
    """(N, c, h, w) clean latents by the one step of a restorer that has one."""
    return restorer.to_x0(condition, restorer.use.timestep, restorer.predict_noise(condition, embedding))
