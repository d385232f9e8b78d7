"""Restore each photo of a step several times, and let a judge or a reward model compare what came of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from db.errors import UserError
from refl.faces.color_fix import fix_color
from refl.restorers.surface import make_generators
from refl.tune.draws import noise_seed
from refl.tune.live_reward import choose_inputs
from refl.tune.monitor import to_uint8
from refl.tune.parts import FacePart
from refl.tune.sampling import Sampled, Trajectory, join_sampled, sample
from refl.tune.training import Training


@dataclass(frozen=True)
class Group:
    """What came of the B photos of a micro-batch, G images each."""

    part: FacePart
    sampled: Sampled
    """B · G images, a photo's next to one another."""
    first: Tensor
    """(B, 3, H, W) in [0, 1], the first image of each photo."""
    rewards: Tensor
    """(B, G), higher is better."""

    @property
    def x0(self) -> Tensor:
        """(B, G, c, h, w) clean latents."""
        return self.sampled.x0.view(*self.rewards.shape, *self.sampled.x0.shape[1:])

    @property
    def conditions(self) -> Tensor:
        """(B, c, h, w) of the photos."""
        return self.sampled.condition[:: self.rewards.shape[1]]


def sample_groups(
    training: Training,
    parts: Sequence[FacePart],
    trajectory: Trajectory,
    step: int,
    places: Collection[int] = (),
) -> list[Group]:
    """Restore and reward the photos of a process at one step; denoised by whole batches, rewarded all at once.

    Args:
        places: of the plan's steps to keep; a photo's images then begin with the same noise, so that only the steps
            that are learned from tell them apart (as DanceGRPO, arXiv:2505.07818, has it).
    Raises:
        UserError: a reward is not finite; names the faces.
    """
    if not parts:
        if training.judge is not None:  # people are asked by all processes together
            none = torch.zeros(0, 3, 1, 1)
            training.judge.score(none, none, none, [], [])
        return []
    size, seed = training.config.algorithm.group_size, training.config.train.seed
    photos = (torch.cat([getattr(part, name) for part in parts]) for name in ("lq", "hq"))
    lq, hq = (photo.repeat_interleave(size, dim=0) for photo in photos)
    faces = [place for part in parts for place in part.places]
    seeds = [noise_seed(seed, step, place, number) for place in faces for number in range(size)]
    starts = [noise_seed(seed, step, place) for place in faces for _ in range(size)] if places else None
    sampled, images = sample_all(training, lq, seeds, trajectory, places, starts)
    captions = [caption for part in parts for caption in part.captions for _ in range(size)]
    names = [training.faces[place].name for place in faces for _ in range(size)]
    rewards = score(training, images, lq, hq, captions, names).view(-1, size)
    found, start = [], 0
    for part in parts:
        stop = start + len(part.places)
        first = images[start * size : stop * size : size].to(lq.device)
        found.append(Group(part, sampled.select(start * size, stop * size), first, rewards[start:stop]))
        start = stop
    return found


def sample_all(
    training: Training,
    lq: Tensor,
    seeds: Sequence[int],
    trajectory: Trajectory,
    places: Collection[int] = (),
    start_seeds: Sequence[int] | None = None,
) -> tuple[Sampled, Tensor]:
    """Restore photos, as many at a time as the settings say; of the start's noise where it is not their own.

    Returns:
        latents and steps; (N, 3, H, W) images on the CPU, in [0, 1] of 8 bits, as `restore` gives them.
    """
    size, found, images = training.rollout_batch_size, [], []
    for first in range(0, len(lq), size):
        one = sample(
            training.restorer,
            lq[first : first + size],
            training.embedding,
            trajectory,
            make_generators(seeds[first : first + size]),
            places=places,
            noise_timestep=training.config.algorithm.group_noise,
            start_generators=make_generators(start_seeds[first : first + size]) if start_seeds else None,
        )
        found.append(one)
        images.append(to_uint8(finish(training, one)))
    return join_sampled(found), torch.cat(images).float() / 255


@torch.no_grad()
def finish(training: Training, sampled: Sampled) -> Tensor:
    """(N, 3, H, W) images in [0, 1]."""
    restorer = training.restorer
    return fix_color(restorer.decode(sampled.x0), sampled.cleaned, restorer.use.color_fix).clamp(0, 1)


@torch.no_grad()
def score(
    training: Training,
    images: Tensor,
    lq: Tensor,
    hq: Tensor,
    captions: Sequence[str | None],
    names: Sequence[str],
) -> Tensor:
    """(N,) rewards on the device of (N, 3, H, W) images in [0, 1], by the judge or the reward model.

    Raises:
        UserError: one is not finite; names the faces.
    """
    device = training.accelerator.device
    if training.judge is not None:
        rewards = training.judge.score(images, lq, hq, captions, names).to(device)
    else:
        size, live = training.rollout_batch_size, training.live
        rewards = torch.cat(
            [
                live.compute(
                    images[first : first + size].to(device),
                    captions[first : first + size],
                    choose_inputs(live.model, lq[first : first + size], hq[first : first + size]),
                ).float()
                for first in range(0, len(images), size)
            ]
        )
    if not torch.isfinite(rewards).all():
        bad = [name for name, fine in zip(names, torch.isfinite(rewards).tolist(), strict=True) if not fine]
        raise UserError(
            f"The reward of {', '.join(dict.fromkeys(bad))} is not a number, at an image restored by this training. "
            "Check these faces, or take another --reward; the last checkpoint is from before."
        )
    return rewards
