"""Read the faces that ReFL trains on from a folder or the project's sources, degraded anew at each use."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from sqlalchemy import select
from torch import Tensor
from torch.utils.data import Dataset

from db.errors import UserError
from db.images import fetch_images
from db.models import Image, Source, Split
from db.records import GROUP_JOINT, draw_split
from db.session import Database
from pixels.metadata import strip_metadata
from refl.faces.align import as_square
from refl.faces.degrade import DegradationSettings, degrade, draw_degradation
from reward.data import Pairs, load_dataset
from runs.image_folders import list_images, read_caption
from training.images import check_images, read_image

log = logging.getLogger(__name__)

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Face:
    """One ground-truth face."""

    name: str
    """Of the file or the source: what errors and grids call it."""
    path: Path
    caption: str | None
    sha256: str | None = None


def find_faces(folder: Path) -> list[Face]:
    """The images of a folder and all below it, by name, each with the text of NAME.txt beside it as its caption.

    Hidden files and folders are passed over, and files of other types named in a warning.

    Raises:
        UserError: there is none, or a caption is not Unicode text; named.
    """
    folder = folder.expanduser()
    paths = list_images(folder, recursive=True)
    if not paths:
        raise UserError(f"{folder} holds no PNG, JPEG or WebP image. Give a folder of sharp, aligned faces.")
    return [Face(path.relative_to(folder).as_posix(), path, read_caption(path)) for path in paths]


def load_faces(database: Database, data: Path, split: Split) -> list[Face]:
    """The ground truths of the project's sources of this split, in the order of their keys."""
    statement = (
        select(Source.key, Source.caption, Image.sha256, Image.suffix)
        .join(Image, Image.id == Source.hq_image_id)
        .where(Source.split == split)
        .order_by(Source.key)
    )
    with database.read() as session:
        rows = session.execute(statement).all()
    paths = fetch_images(data, [(row.sha256, row.suffix) for row in rows])
    return [Face(row.key, path, row.caption, row.sha256) for row, path in zip(rows, paths, strict=True)]


def find_held_out_photos(dataset: Path) -> list[Face]:
    """The ground truths of a dataset's photos of the split val, by name; none where it has none."""
    rows = load_dataset(dataset).select("val").rows
    found = {row.source: Face(row.source, row.hq, row.caption, row.sha256_hq) for row in rows if row.hq is not None}
    return [found[name] for name in sorted(found)]


def split_faces(faces: Sequence[Face], seed: int, held_out_share: float) -> tuple[list[Face], list[Face]]:
    """(faces to train on, faces held out) by a seeded hash of the person, so that the same are whatever else is there.

    A person is a folder of its own below the faces' folder; of faces that lie in it directly each is a person, and
    files of the same bytes are one.
    """
    sizes = Counter(face.path.stat().st_size for face in faces)
    digests = {
        face.path: hashlib.sha256(face.path.read_bytes()).hexdigest()
        for face in faces
        if sizes[face.path.stat().st_size] > 1
    }
    first_of: dict[str, str] = {}
    people = []
    for face in faces:
        person = face.name.split("/")[0] if "/" in face.name else face.path.stem
        people.append(first_of.setdefault(digests.get(face.path, face.name), person))
    found: dict[Split, list[Face]] = {Split.train: [], Split.val: []}
    for face, person in zip(faces, people, strict=True):
        found[draw_split(person, seed, held_out_share, 0.0)].append(face)
    return found[Split.train], found[Split.val]


def leave_out_held_out(faces: Sequence[Face], pairs: Pairs, known: Path) -> list[Face]:
    """The faces without those of the dataset's photos that are held out of training: its splits val and test.

    They are known by the SHA-256 of their ground truth or low-quality image, whatever metadata it has, and by their
    photo's or person's name.

    Args:
        known: see `training.images.check_images`.
    Raises:
        UserError: an image is missing or damaged, or no face is left.
    """
    rows = [row for row in pairs.rows if row.split != "train"]
    # A group of several persons, who share a photo, is named after all of them.
    names = {name for row in rows for name in (row.source, row.group, *row.group.split(GROUP_JOINT))}
    files = {path: None for row in rows for path in (row.hq, row.lq) if path is not None}
    check_images(files, known)
    check_faces(faces, known)
    with ThreadPoolExecutor() as pool:
        held_out = set(pool.map(_hash_as_stored, files))
        sha256 = dict(zip(faces, pool.map(_hash_as_stored, (face.path for face in faces)), strict=True))
    kept = [
        face
        for face in faces
        if sha256[face] not in held_out and not names & {face.name, face.path.stem, face.name.split("/")[0]}
    ]
    if faces and not kept:
        raise UserError(
            f"All {len(faces):,} faces are of photos that {pairs.path} holds out. Give others with --faces."
        )
    if len(kept) < len(faces):
        log.info(
            "%s of %s faces are of photos that the dataset holds out: left out", len(faces) - len(kept), len(faces)
        )
    return kept


def _hash_as_stored(path: Path) -> str:
    """SHA-256 of a file without metadata: a photo that was imported from it is stored so."""
    return hashlib.sha256(strip_metadata(path.read_bytes())[0]).hexdigest()


def check_faces(faces: Sequence[Face], known: Path | None = None) -> dict[Path, str]:
    """Decode every face once, so that none fails in the middle of training; returns their SHA-256.

    Args:
        known: see `training.images.check_images`.

    Raises:
        UserError: one is missing or damaged; named.
    """
    return check_images({face.path: face.sha256 for face in faces}, known)


class DegradedFaces(Dataset[tuple[Tensor, Tensor]]):
    """(hq, lq) by (draw, place): two (3, S, S) in [0, 1]. The draw and the face's name decide the degradation.

    Asked twice for the same it gives the same, in whichever process.
    """

    def __init__(self, faces: Sequence[Face], size_px: int, settings: DegradationSettings, seed: int) -> None:
        self.faces, self.size_px, self.settings, self.seed = faces, size_px, settings, seed

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        draw, place = key
        square, _ = as_square(read_image(self.faces[place].path), self.size_px)
        hq = square.astype(np.float32) / np.float32(255)
        rng = np.random.default_rng([self.seed, draw, place])
        return _to_tensor(hq), _to_tensor(degrade(hq, draw_degradation(self.settings, rng)))


def _to_tensor(image: FloatImage) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def stack(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(N, 3, S, S) hq and lq; a `collate_fn`."""
    hq, lq = zip(*items, strict=True)
    return torch.stack(hq), torch.stack(lq)


def use_one_thread() -> None:
    """For decoding processes: OpenCV would take all cores in each."""
    cv2.setNumThreads(1)
