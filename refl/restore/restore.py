"""Restore faces of any size with a restorer, and store what a database lacks.

A restored image has the size of its low-quality image, whatever size the restorer works at, so that all candidates of
a source are of one size and lie over each other; another size has to be asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from db.errors import UserError
from db.session import Database
from pixels.read import ImageFault, RgbImage, read_rgb
from refl.faces.align import as_square
from refl.faces.color_fix import ColorFix, fix_color
from refl.faces.grey import keep_grey
from refl.faces.photo_files import map_in_threads
from refl.restore.rows import Slot, encode_faces, find_missing, store_candidates
from refl.restorers.surface import Restorer
from training.stopping import advise_out_of_memory


@dataclass(frozen=True)
class RestoreMethod:
    """A restorer and how it is used here: what a method's name in the database stands for."""

    name: str
    restorer: Restorer
    device: str = "cpu"
    steps: int | None = None
    """None for the restorer's own."""
    work_size_px: int | None = None
    """Side of the squares that the restorer is given; None for the size that it was trained at."""
    size_px: int | None = None
    """Longer side of the restored images; None for the low-quality image's own."""
    color_fix: ColorFix | None = None
    """A fix after the restorer's own; None for no other."""
    settings: dict[str, Any] = field(default_factory=dict)
    """All that the pixels depend on."""

    def seeds_of(self, seeds: Sequence[int]) -> list[int]:
        """The seeds that make a difference: one where the restorer draws no noise."""
        return list(dict.fromkeys(seeds)) if self.restorer.is_random else [0]


def restore_faces(method: RestoreMethod, faces: Sequence[RgbImage], seeds: Sequence[int]) -> list[RgbImage]:
    """The restored faces, each of its own size (or of `method.size_px`), without colour where the face has none.

    Args:
        faces: (H, W, 3) uint8 RGB, aligned, of any sizes; what is not square is filled up and cut again.
        seeds: one per face.
    Raises:
        UserError: the batch is too large for the memory, or the restorer gives values that are not numbers.
    """
    work_px = method.work_size_px or method.restorer.image_size_px
    squares = [as_square(face, work_px) for face in faces]
    lq = to_tensor([square for square, _ in squares])
    with explain_small_memory(method, len(faces), "--small-memory"), torch.inference_mode():
        lq = lq.to(method.device)
        restored = method.restorer.restore(lq, list(seeds), method.steps)
        if method.color_fix:
            restored = fix_color(restored, lq, method.color_fix)
        if not bool(torch.isfinite(restored).all()):
            raise UserError(f"{method.name} gives values that are not numbers; try --dtype float32.")
        images = to_images(restored)
    return [
        _fit(keep_grey(image[place], face), face, method.size_px)
        for image, (_, place), face in zip(images, squares, faces, strict=True)
    ]


def explain_small_memory(method: RestoreMethod, faces: int, of_one: str) -> AbstractContextManager[None]:
    """Say how many faces at a time were too many.

    Args:
        of_one: the option that helps where it was one.
    """
    advice = f"--batch-size {faces // 2}" if faces > 1 else of_one
    where = f"The memory of {method.device} is too small for {faces} faces at a time by {method.name}"
    return advise_out_of_memory(lambda: f"{where}: give {advice}.")


def to_tensor(images: Sequence[RgbImage]) -> Tensor:
    """(N, 3, H, W) float32 in [0, 1] of images of one size, (H, W, 3) uint8."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255.0


def to_images(pixels: Tensor) -> list[RgbImage]:
    """(H, W, 3) uint8 of each of (N, 3, H, W), clamped and rounded."""
    rounded = (pixels.float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return list(rounded.permute(0, 2, 3, 1).cpu().numpy())


def _fit(restored: RgbImage, face: RgbImage, size_px: int | None) -> RgbImage:
    """The restored face in the size of what it was restored from, or enlarged or shrunk to `size_px`."""
    height, width = face.shape[:2]
    if size_px is not None:
        scale = size_px / max(height, width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
    if restored.shape[:2] == (height, width):
        return np.ascontiguousarray(restored)
    smaller = width < restored.shape[1]
    resized = cv2.resize(restored, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    return np.asarray(resized, dtype=np.uint8)


def count_missing(
    method: RestoreMethod,
    method_id: int,
    database: Database,
    data: Path,
    source_ids: Sequence[int],
    seeds: Sequence[int],
) -> int:
    """Count the candidates of this method that these sources lack."""
    seeds = method.seeds_of(seeds)
    return sum(1 for _ in find_missing(database, data, source_ids, method_id, seeds, fetch=False))


def restore_missing(
    method: RestoreMethod,
    method_id: int,
    database: Database,
    data: Path,
    source_ids: Sequence[int],
    seeds: Sequence[int],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Make and store the candidates of this method that these sources lack; returns how many.

    A batch is stored as soon as it is made: what is stopped or killed loses one batch, and goes on after the others.

    Args:
        progress: called with the number of images stored, after each batch.
    Raises:
        UserError: see `restore_faces` and `store_candidates`.
    """
    made = 0
    for batch in _read_batches(find_missing(database, data, source_ids, method_id, method.seeds_of(seeds)), batch_size):
        slots = [slot for slot, _ in batch]
        images = restore_faces(method, [face for _, face in batch], [slot.seed for slot in slots])
        store_candidates(database, data, method_id, encode_faces(zip(slots, images, strict=True)))
        made += len(batch)
        if progress:
            progress(len(batch))
    return made


def _read_batches(slots: Iterator[Slot], size: int) -> Iterator[list[tuple[Slot, RgbImage]]]:
    faces = map_in_threads(lambda slot: (slot, _read_stored(slot.lq)), slots)
    while batch := list(islice(faces, size)):
        yield batch


def _read_stored(file: Path) -> RgbImage:
    try:
        return read_rgb(file)
    except (OSError, ImageFault) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{file}: cannot be read ({why}); import its photo again.") from error
