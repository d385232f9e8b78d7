"""Find and check the faces of an evaluation before anything is loaded, and read them in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from db.errors import UserError
from db.models import Split
from db.session import Database
from pixels.read import READING, decode_plain
from refl.evaluate.options import EvaluateOptions
from refl.faces.align import as_square
from refl.faces.degrade import DegradationSettings
from refl.faces.photo_files import map_in_threads
from refl.tune.config import load_refl_config
from refl.tune.data import DegradedFaces, Face, check_faces, find_faces, load_faces, stack
from training.images import read_image

EVALUATION_DRAW = 2**41
"""The draw of the degradations here, which no training step and no monitor has."""
DEGRADATION_SEED = 0


@dataclass(frozen=True)
class FaceSet:
    """Faces to restore; their pixels stay on the disk."""

    name: str
    faces: Sequence[Face]
    """Each with its SHA-256."""
    size_px: int
    degradation: DegradationSettings | None
    """Degradation, with fixed seeds; None of wild ones, which are taken as they are and have no ground truth."""

    @property
    def has_truth(self) -> bool:
        """Whether the sharp faces are known."""
        return self.degradation is not None

    @property
    def names(self) -> list[str]:
        """Of the faces, in their order."""
        return [face.name for face in self.faces]

    @cached_property
    def readings(self) -> list[int]:
        """Of each face `pixels.read.READING`; 0 where its file is plain, the same pixels to every version of that."""

        def read(face: Face) -> int:
            return READING if decode_plain(face.path.read_bytes()).conversion else 0

        return list(map_in_threads(read, self.faces))

    def read_lq(self, places: Sequence[int]) -> Tensor:
        """(n, 3, S, S) in [0, 1] of what restorers are given; the same in whichever batch."""
        if self.degradation is None:
            return self.read_squares(places)
        degraded = DegradedFaces(self.faces, self.size_px, self.degradation, DEGRADATION_SEED)
        _, lq = stack(list(map_in_threads(lambda place: degraded[EVALUATION_DRAW, place], places)))
        return lq

    def read_squares(self, places: Sequence[int]) -> Tensor:
        """(n, 3, S, S) in [0, 1] of the files: the ground truths, where there are any."""

        def read(place: int) -> Tensor:
            square, _ = as_square(read_image(self.faces[place].path), self.size_px)
            return torch.from_numpy(square.transpose(2, 0, 1).copy()).float() / 255

        return torch.stack(list(map_in_threads(read, places)))

    def describe(self) -> dict[str, Any]:
        """All of it that restored pixels depend on, as JSON values."""
        degradation = self.degradation.model_dump(mode="json") if self.degradation else None
        return {
            "size_px": self.size_px,
            "degradation": degradation and {**degradation, "draw": EVALUATION_DRAW, "seed": DEGRADATION_SEED},
            "faces": [
                [face.name, face.sha256, *([reading] if reading else [])]
                for face, reading in zip(self.faces, self.readings, strict=True)
            ],
        }


def split_batches(count: int, size: int) -> Iterator[range]:
    """The places of each batch. Always the same ones, so that a continued evaluation rounds as one never stopped."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def load_sets(options: EvaluateOptions, database: Database, data: Path, size_px: int) -> list[FaceSet]:
    """`synthetic`, degraded with fixed seeds, and `wild`; every file is decoded once.

    Raises:
        UserError: there is no face, or one is damaged.
    """
    found = {
        "synthetic": find_faces(options.faces) if options.faces else load_faces(database, data, Split.test),
        "wild": find_faces(options.wild) if options.wild else [],
    }
    sets = []
    for name, faces in found.items():
        if faces := faces[: options.limit]:
            known = check_faces(faces)
            faces = [replace(face, sha256=known[face.path]) for face in faces]
            degradation = load_refl_config(options.degradation).degradation if name == "synthetic" else None
            sets.append(FaceSet(name, faces, size_px, degradation))
    if not sets:
        raise UserError(
            "There is no face to restore. Give --faces DIR or --wild DIR, or import sources of the split test with "
            "ground truth (hq)."
        )
    return sets
