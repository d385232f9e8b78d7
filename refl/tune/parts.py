"""Read what each step learns from: faces degraded anew, or labelled pairs; a process's share in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from refl.tune.data import stack, use_one_thread
from refl.tune.training import Training
from training.batches import choose_batch, make_loader, split_batch


@dataclass(frozen=True)
class FacePart:
    """One process's micro-batch of faces."""

    places: list[int]
    hq: Tensor
    """(N, 3, H, W) in [0, 1]; lq too."""
    lq: Tensor
    captions: list[str | None]


@dataclass(frozen=True)
class PairPart:
    """One process's micro-batch of labelled pairs."""

    places: list[int]
    photos: Tensor
    """(N, …) what `compute_errors` takes of the photos that were restored."""
    images: Tensor
    """(N, 2, c, h, w) clean latents of a and b."""
    p_a: Tensor
    """(N,) probability that a is better."""
    label_weights: Tensor
    """(N,) factors on the loss."""


Part = FacePart | PairPart


def read_parts(training: Training, steps: range) -> Iterator[list[Part]]:
    """This process's micro-batches of each step, decoded and degraded ahead by worker processes."""
    accelerator, config = training.accelerator, training.config.train
    planned = [
        split_batch(
            choose_batch(step, training.count, config.batch_size, config.seed),
            accelerator.num_processes,
            accelerator.process_index,
            training.micro_batch_size,
        )
        for step in steps
    ]
    keys = [
        [(step, int(place)) for place in part] for step, parts in zip(steps, planned, strict=True) for part in parts
    ]
    pinned = accelerator.device.type == "cuda"
    batches = make_loader(training.images, keys, stack, config.workers, pinned, use_one_thread)
    for parts in planned:
        yield [_make_part(training, places.tolist(), next(batches)) for places in parts]


def _make_part(training: Training, places: list[int], read: tuple[Tensor, Tensor]) -> Part:
    """A micro-batch on the device, of what the training's images gave for it."""
    device = training.accelerator.device
    first, second = (one.to(device, non_blocking=True) for one in read)
    if training.pairs is None:
        return FacePart(places, first, second, [training.faces[place].caption for place in places])
    rows = [training.pairs.rows[place] for place in places]
    weights = training.config.algorithm.origin_weights
    p_a = torch.tensor([row.p_a for row in rows]).to(device, non_blocking=True)
    factors = torch.tensor([row.weight * weights[row.origin] for row in rows]).to(device, non_blocking=True)
    return PairPart(places, first, second.float(), p_a, factors)
