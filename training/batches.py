"""Choose the pairs of each step and process, from the seed and the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Dataset

from runs.signals import ignore_signals

Indices = npt.NDArray[np.int64]


def choose_batch(step: int, n_pairs: int, batch_size: int, seed: int) -> Indices:
    """The pairs of an optimizer step over all processes; each once an epoch, whose last batch may be smaller.

    Args:
        step: from 0.
    Returns:
        (B,) places of pairs, B = batch_size or what is left of the epoch.
    """
    epoch, place = divmod(step, math.ceil(n_pairs / batch_size))
    return shuffle(n_pairs, seed, epoch)[place * batch_size : (place + 1) * batch_size]


@lru_cache(maxsize=2)  # the step's epoch, and that of the batches read ahead
def shuffle(n_pairs: int, seed: int, epoch: int) -> Indices:
    """(n_pairs,) the places of pairs in the order of an epoch, read-only."""
    order = np.random.default_rng([seed, epoch]).permutation(n_pairs)
    order.setflags(write=False)
    return order


def split_batch(batch: Indices, processes: int, process: int, micro_batch_size: int) -> list[Indices]:
    """One process's micro-batches of a batch: none where the batch does not reach for every process."""
    mine = np.array_split(batch, processes)[process]
    return np.array_split(mine, math.ceil(len(mine) / micro_batch_size)) if len(mine) else []


def make_loader(
    dataset: Dataset[Any],
    batches: Iterable[list[Any]],
    collate: Callable[[Any], Any],
    workers: int,
    pinned: bool,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Any]:
    """Collate each batch of the dataset's keys, decoded ahead by worker processes.

    Args:
        prepare: called first in each of these processes; of a module, so that it can be sent to them.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=partial(start_worker, prepare),
        pin_memory=pinned,
    )
    return iter(loader)


def start_worker(prepare: Callable[[], None] | None, _worker: int) -> None:
    """Prepare a decoding process."""
    ignore_signals()
    if prepare is not None:
        prepare()
