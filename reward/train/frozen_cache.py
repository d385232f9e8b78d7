"""Compute the output of the frozen first blocks for each image once, and keep it on disk.

Training sees an image many times and nothing augments it, so these activations never change. `frozen/activations.bin`
holds them one image after another; `frozen/frozen.json`, written last, says of which images and weights they are.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from db.errors import UserError
from pixels.read import READING
from reward.data import Images, Pairs, group_images
from reward.model.model import RewardModel
from training.processes import broadcast, share_places

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """What is kept, and what to do where the disk has no room for it."""

    name: str
    instead: str


ACTIVATIONS = Kept(
    "the activations of the frozen blocks", "Name an --out on a larger disk, or set cache_frozen to false."
)


@dataclass(frozen=True)
class FrozenCache:
    """Cache of the activations of each image."""

    file: Path
    place: dict[Path, int]
    shape: tuple[int, ...]
    """Of one image's activations, without the batch."""
    dtype: torch.dtype

    @property
    def image_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def is_whole(self) -> bool:
        """Whether the file is there, with room for every image."""
        return self.file.is_file() and self.file.stat().st_size == len(self.place) * self.image_bytes

    def open(self, mode: Any = "r") -> np.memmap[Any, np.dtype[np.uint8]]:
        """(images, image_bytes) uint8: the numbers as they lie, since numpy has no bfloat16."""
        return np.memmap(self.file, np.uint8, mode, shape=(len(self.place), self.image_bytes))

    def read(self, memory: np.memmap[Any, np.dtype[np.uint8]], path: Path) -> Tensor:
        """What is kept of an image, of the file as `open` gives it."""
        content = np.array(memory[self.place[path]])
        return torch.from_numpy(content).view(self.dtype).view(self.shape)


class CachedPairs(Dataset[tuple[Tensor, ...]]):
    """The activations of pairs by the row's index, in place of `PairImages`."""

    def __init__(self, pairs: Pairs, cache: FrozenCache) -> None:
        self.rows, self.list_images = pairs.rows, pairs.list_images
        self.cache = cache
        self.memory: np.memmap[Any, np.dtype[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if self.memory is None:  # each worker opens the file for itself
            self.memory = self.cache.open()
        return tuple(self.cache.read(self.memory, path) for path in self.list_images(self.rows[index]))


def stack_pairs(items: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """A `collate_fn` for `CachedPairs`: (2B or 3B, …), the activations in the order of `group_pairs`."""
    return torch.stack([one for kind in zip(*items, strict=True) for one in kind])


def cache_frozen(
    model: RewardModel,
    pairs: Pairs,
    sha256: dict[Path, str],
    folder: Path,
    accelerator: Accelerator,
    *,
    batch_images: int,
    workers: int,
) -> FrozenCache:
    """Compute what is not there yet, every process its share; the folder must be one that all processes see.

    Args:
        model: with its frozen blocks as they are trained with, on the accelerator's device.
        pairs: whose images.
        sha256: of the content of each image file; the main process needs it.
        batch_images: images a forward pass.
    Raises:
        UserError: the disk has no room.
    """
    paths = sorted({path for row in pairs.rows for path in pairs.list_images(row)})
    device, size_px = accelerator.device, model.config.image_size_px

    def encode(images: Tensor) -> Tensor:
        return model.encode_frozen(images.to(device).float() / 255)

    return keep_outputs(
        encode,
        Images(paths),
        paths,
        torch.zeros(1, 3, size_px, size_px, dtype=torch.uint8),
        lambda cache: describe_cache(model, cache, sha256),
        folder,
        accelerator,
        batch_images=batch_images,
        workers=workers,
    )


def keep_outputs(
    encode: Callable[[Tensor], Tensor],
    images: Dataset[Tensor],
    paths: Sequence[Path],
    example: Tensor,
    describe: Callable[[FrozenCache], dict[str, Any]],
    folder: Path,
    accelerator: Accelerator,
    *,
    batch_images: int,
    workers: int,
    what: Kept = ACTIVATIONS,
) -> FrozenCache:
    """Compute what a frozen network makes of each image, where it is not there yet, every process its share.

    Args:
        encode: (N, 3, H, W) uint8 -> (N, …), in the numbers that it computes in: reading them is as computing them.
        images: of the paths, in their order.
        example: (1, 3, H, W) uint8, by which the outputs' shape is found.
        describe: all that decides the outputs; the main process needs it.
        folder: one that all processes see.
    Raises:
        UserError: the disk has no room.
    """
    with torch.no_grad():
        made = encode(example)
    cache = FrozenCache(
        folder / "activations.bin", {path: at for at, path in enumerate(paths)}, tuple(made.shape[1:]), made.dtype
    )
    wanted = describe(cache) if accelerator.is_main_process else {}
    there = broadcast(accelerator, _read_record(folder) == wanted and cache.is_whole())
    if there:
        log.info("%s holds %s of the %s images", folder, what.name, f"{len(paths):,}")
        return cache
    if accelerator.is_main_process:
        make_room(folder, len(paths) * cache.image_bytes, what)
        reserve_room(cache.file, len(paths) * cache.image_bytes, what)
        log.info("computing %s of %s images, once", what.name, f"{len(paths):,}")
    accelerator.wait_for_everyone()
    fill_cache(encode, images, cache, accelerator, batch_images=batch_images, workers=workers)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        unfinished = folder / "frozen.json.part"
        unfinished.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(folder / "frozen.json")
    accelerator.wait_for_everyone()
    return cache


def describe_cache(model: RewardModel, cache: FrozenCache, sha256: dict[Path, str]) -> dict[str, Any]:
    """For `frozen.json`: all that decides what the file holds."""
    return {
        "images": hashlib.sha256("\n".join(sha256[path] for path in cache.place).encode()).hexdigest(),
        "weights": hash_frozen(model),
        "dtype": str(cache.dtype),
        "shape": list(cache.shape),
        "reading": READING,
    }


def fill_cache(
    encode: Callable[[Tensor], Tensor],
    images: Dataset[Tensor],
    cache: FrozenCache,
    accelerator: Accelerator,
    *,
    batch_images: int,
    workers: int,
) -> None:
    """Compute this process's share of the images and write it to its places of the file."""
    mine = share_places(accelerator, len(cache.place))
    loader = DataLoader(Subset(images, mine), batch_images, num_workers=workers, collate_fn=group_images)
    memory = cache.open("r+")
    done = 0
    for groups in loader:
        for places, same_size in groups:
            with torch.no_grad():
                found = encode(same_size).cpu()
            rows = [mine[done + place] for place in places]
            memory[rows] = found.contiguous().view(torch.uint8).view(len(found), -1).numpy()
        done += sum(len(places) for places, _ in groups)
    memory.flush()


def hash_frozen(model: RewardModel) -> str:
    """SHA-256 of all that decides what the frozen blocks give: their weights, their heads, how images are fed."""
    digest = hashlib.sha256()
    config = model.config
    settings: list[Any] = [config.image_size_px, config.interpolation, config.antialias, config.mean, config.std]
    settings += [model.frozen_image_groups, model.architecture["vision_cfg"], model.architecture.get("quick_gelu")]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, parameter in model.clip.visual.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def make_room(folder: Path, size_bytes: int, what: Kept = ACTIVATIONS) -> None:
    """An empty folder on a disk with so much room.

    Raises:
        UserError: the disk has less.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if size_bytes > free:
        raise UserError(
            f"{folder}: {what.name} need {size_bytes / 2**30:.1f} GiB, the disk has {free / 2**30:.1f}. {what.instead}"
        )


def reserve_room(file: Path, size_bytes: int, what: Kept = ACTIVATIONS) -> None:
    """A new file that has all of its room on the disk: one that fills up later ends whoever writes to its memory map.

    Raises:
        UserError: the disk is full.
    """
    with open(file, "wb") as stream:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size_bytes)
            else:
                stream.truncate(size_bytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # a disk that cannot set room aside
                stream.truncate(size_bytes)
                return
            file.unlink()
            raise UserError(
                f"{file.parent}: {what.name} need {size_bytes / 2**30:.1f} GiB, and the disk has less "
                f"({error.strerror}). {what.instead}"
            ) from error


def _read_record(folder: Path) -> Any:
    try:
        return json.loads((folder / "frozen.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
