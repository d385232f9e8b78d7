"""Draw all that is random in a training from the seed, the step and the place, so that it can be continued exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refl.tune.sampling import Trajectory
from refl.tune.training import Training

TRAJECTORY_DRAW, NOISE_DRAW, TIMESTEP_DRAW, PLACES_DRAW = 1, 2, 3, 4
"""Keep the seeds of different draws apart."""


def draw_trajectory(training: Training, step: int) -> Trajectory:
    """This step's trajectory, one for all its images, so that they go through the model together."""
    config = training.config.trajectory
    rng = np.random.default_rng([training.config.train.seed, TRAJECTORY_DRAW, step])
    low, high = config.gradient_window
    index = int(rng.integers(low, high, endpoint=True))
    etas = [float(eta) for eta in rng.uniform(*config.eta, size=len(training.plan))]
    return Trajectory(training.plan, etas, index, config.unroll, config.renoise)


def noise_seed(seed: int, step: int, place: int, *which: int) -> int:
    """The seed of one image's noise at one step; `which` tells several of one face apart."""
    return int(np.random.default_rng([seed, NOISE_DRAW, step, place, *which]).integers(2**63 - 1))


def draw_timesteps(training: Training, step: int, places: Sequence[int]) -> list[int]:
    """The timestep of each face or pair at which errors are compared."""
    low, high = training.config.algorithm.noise_window
    seed = training.config.train.seed
    rngs = [np.random.default_rng([seed, TIMESTEP_DRAW, step, place]) for place in places]
    return [int(rng.integers(low, high, endpoint=True)) for rng in rngs]


def draw_places(training: Training, step: int) -> list[int]:
    """The places in the plan whose steps have a gradient in grpo, in order."""
    count, total = training.config.algorithm.gradient_steps, len(training.plan)
    rng = np.random.default_rng([training.config.train.seed, PLACES_DRAW, step])
    drawn = rng.choice(total, count or total, replace=False)
    return sorted(int(place) for place in drawn)
