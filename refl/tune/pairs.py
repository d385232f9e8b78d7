"""Read the labelled pairs that dpo learns from as latents, each computed once and kept on disk.

Nothing augments a pair and its autoencoder is frozen, so its latents never change: `latents/images` holds those of the
restored images, `latents/photos` the conditions' of the photos, where training does not change what encodes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import Dataset

from db.errors import UserError
from pixels.read import READING
from refl.faces.align import as_square
from refl.restorers.content import describe_content
from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.latent import dtype_of
from refl.tune.config import AlgorithmConfig, ReflConfig
from refl.tune.sampling import Tunable
from reward.data import Pairs, check_pairs
from reward.train.frozen_cache import FrozenCache, Kept, keep_outputs
from training.images import read_image

LATENTS = Kept("the latents", "Name an --out on a larger disk, or give fewer pairs.")
BATCH_IMAGES = 8


def choose_pairs(pairs: Pairs, config: AlgorithmConfig) -> Pairs:
    """The pairs of the train split that teach something.

    Raises:
        UserError: there is none, or one lacks the photo that was restored.
    """
    weights = config.origin_weights
    rows = tuple(
        row
        for row in pairs.select("train").rows
        if row.weight * weights[row.origin] > 0 and not (row.p_a == 0.5 and config.ties == "drop")
    )
    if not rows:
        raise UserError(
            f"{pairs.path} has nothing to learn from: {pairs.describe()}, but none in the split train with a weight "
            "above 0. Export with the split train, or check ties, svm_weight and constructed_weight."
        )
    lacking = [row.source for row in rows if row.lq is None]
    if lacking:
        raise UserError(
            f"{pairs.path}: {len(lacking):,} of {len(rows):,} pairs lack the photo that was restored, which dpo gives "
            f"the restorer; the first is of {lacking[0]!r}. Import the photos with lq and export again as jsonl."
        )
    return Pairs(pairs.path, rows, "lq")


class Squares(Dataset[Tensor]):
    """Images by their place in the list, as squares of one size: (3, S, S) uint8 RGB."""

    def __init__(self, paths: Sequence[Path], size_px: int) -> None:
        self.paths, self.size_px = paths, size_px

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Tensor:
        return read_square(self.paths[place], self.size_px)


def read_square(path: Path, size_px: int) -> Tensor:
    """(3, S, S) uint8 RGB of an image file."""
    return torch.from_numpy(np.ascontiguousarray(as_square(read_image(path), size_px)[0].transpose(2, 0, 1)))


class LatentPairs(Dataset[tuple[Tensor, Tensor]]):
    """(photo, images) by (draw, place): what `compute_errors` takes of the photo, and (2, c, h, w) latents of a and b.

    The draw changes nothing. Both are in the numbers that they were computed in.
    """

    def __init__(self, pairs: Pairs, images: FrozenCache, photos: FrozenCache | int) -> None:
        """
        Args:
            photos: the conditions' latents, or the side of the photo itself, (3, S, S) in [0, 1].
        """
        self.pairs, self.images, self.photos = pairs, images, photos
        self.memory: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        row = self.pairs.rows[key[1]]
        assert row.lq is not None
        if isinstance(self.photos, FrozenCache):
            photo = self._read(self.photos, row.lq)
        else:
            photo = read_square(row.lq, self.photos).float() / 255
        return photo, torch.stack([self._read(self.images, path) for path in (row.image_a, row.image_b)])

    def _read(self, cache: FrozenCache, path: Path) -> Tensor:
        if cache.file not in self.memory:  # each worker opens the file for itself
            self.memory[cache.file] = cache.open()
        return cache.read(self.memory[cache.file], path)


def read_latent_pairs(
    pairs: Pairs,
    restorer: Tunable,
    settings: Mapping[str, Any],
    target_vae: AutoencoderKL | None,
    config: ReflConfig,
    size_px: int,
    out: Path,
    accelerator: Accelerator,
) -> LatentPairs:
    """The pairs as latents, computed where `out/latents` does not hold them yet. A collective.

    Args:
        pairs: of `choose_pairs`.
        settings: the restorer's, before what it has learned was loaded.
        target_vae: see `Material`.
    Raises:
        UserError: an image is missing or damaged, or the disk has no room.
    """
    sha256: dict[Path, str] = {}
    if accelerator.is_main_process:
        sha256 = check_pairs(pairs, known=out / "checked.json")
    device, dtype = accelerator.device, dtype_of(restorer.vae)
    described = {"restorer": describe_content(settings), "size_px": size_px, "dtype": str(dtype), "reading": READING}
    described["own_autoencoder"] = target_vae is None

    def encode_image(pixels: Tensor) -> Tensor:
        with restorer.without_adapters():  # where the encoder has some
            return restorer.encode_pixels(pixels, target_vae)

    def keep(name: str, paths: Sequence[Path], encode: Callable[[Tensor], Tensor]) -> FrozenCache:
        def describe(cache: FrozenCache) -> dict[str, Any]:
            listed = hashlib.sha256("\n".join(sha256[path] for path in cache.place).encode()).hexdigest()
            return {"images": listed, "shape": list(cache.shape), **described}

        return keep_outputs(
            lambda images: encode(images.to(device).float() / 255).to(dtype),
            Squares(paths, size_px),
            paths,
            torch.zeros(1, 3, size_px, size_px, dtype=torch.uint8),
            describe,
            out / "latents" / name,
            accelerator,
            batch_images=BATCH_IMAGES,
            workers=config.train.workers,
            what=LATENTS,
        )

    restored = sorted({path for row in pairs.rows for path in (row.image_a, row.image_b)})
    images = keep("images", restored, encode_image)
    if not isinstance(restorer, DiffusionRestorer):
        return LatentPairs(pairs, images, size_px)
    photos = sorted({row.lq for row in pairs.rows if row.lq is not None})
    return LatentPairs(pairs, images, keep("photos", photos, restorer.encode_condition))
