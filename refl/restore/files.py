"""Write restored faces and whole photos as files, beside the rows of the database.

`DIR/<method>/` holds the faces, byte for byte as they are stored; whole photos with their restored faces pasted back
lie in `DIR/photos/<method>/`, what was enlarged around the faces in `DIR/photos/enlarged-by-<model>/`. A method that
draws noise has a folder for each seed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from db.session import Database
from pixels.read import read_rgb
from refl.faces.align import RgbImage, compute_alignment, paste_faces
from refl.faces.grey import keep_grey
from refl.faces.photo_files import encode_png, read_photo, write_whole
from refl.restore.inputs import PhotoFaces
from refl.restore.rows import find_candidates

if TYPE_CHECKING:
    from refl.restore.restore import RestoreMethod

PHOTOS = "photos"
Enlarger = tuple[str, str, Any]
"""(name of its weight file, the file's SHA-256, model) as `refl.restore.background.load_enlarger` gives it."""


@dataclass(frozen=True)
class MadeBy:
    """One method and seed of which files are written."""

    method_id: int
    method: str
    seed: int
    folder: str


def list_made(method: RestoreMethod, method_id: int, seeds: Sequence[int]) -> list[MadeBy]:
    """List what a method makes with these seeds; one that draws no noise needs no seed in its folder's name."""
    name, is_random = method.name, method.restorer.is_random
    return [
        MadeBy(method_id, name, seed, _as_name(f"{name}-seed{seed}" if is_random else name))
        for seed in method.seeds_of(seeds)
    ]


def _as_name(name: str) -> str:
    """A name from the database as the name of one file, whatever it holds."""
    plain = re.sub(r"[/\\\0]", "_", name)
    return f"_{plain[1:]}" if plain.startswith(".") else plain


def write_faces(database: Database, data: Path, out: Path, source_ids: Sequence[int], made_by: Sequence[MadeBy]) -> int:
    """Write the restored faces that are there, byte for byte as they are stored; returns how many were new.

    Raises:
        UserError: a file cannot be written.
    """
    written = 0
    for made in made_by:
        for _, key, _, image in find_candidates(database, data, source_ids, made.method_id, [made.seed]):
            file = out / made.folder / f"{_as_name(key)}{image.suffix}"
            content = image.read_bytes()
            if not file.exists() or file.read_bytes() != content:
                write_whole(file, content)
                written += 1
    return written


def write_photo(
    database: Database,
    data: Path,
    out: Path,
    photo: PhotoFaces,
    made_by: Sequence[MadeBy],
    enlarger: Enlarger | None = None,
) -> dict[str, str]:
    """Write a photo with the restored faces pasted back, once per method and seed; returns folder -> file.

    Args:
        enlarger: enlarges the background; None leaves it as it is.
    Raises:
        UserError: the photo cannot be read or a file cannot be written.
    """
    pixels, _ = read_photo(photo.file)
    background, enlarged = pixels, 1.0
    if enlarger is not None:
        background, enlarged = _enlarge_once(out, photo.file, pixels, enlarger)
    files = {}
    for made in made_by:
        restored = find_candidates(database, data, list(photo.faces), made.method_id, [made.seed])
        faces = []
        for source_id, _, _, image in restored:
            face = read_rgb(image)
            faces.append((face, compute_alignment(photo.faces[source_id], face.shape[0])))
        file = out / PHOTOS / made.folder / f"{photo.file.stem}.png"
        write_whole(file, encode_png(keep_grey(paste_faces(background, faces, enlarged), pixels)))
        files[made.folder] = str(file)
    return files


def _enlarge_once(out: Path, file: Path, photo: RgbImage, enlarger: Enlarger) -> tuple[RgbImage, float]:
    """(the enlarged photo, how many times): of an earlier call where that left one of the same pixels."""
    from refl.restore.background import enlarge  # here: it loads torch

    name, sha256, model = enlarger
    # another photo of the same name has another file, and so has the same photo by another model of the same name
    content = hashlib.sha256(f"{sha256} {photo.shape}".encode() + photo.tobytes()).hexdigest()
    kept = out / PHOTOS / f"enlarged-by-{name}" / f"{file.stem}-{content[:16]}.png"
    if kept.exists():
        return read_rgb(kept), float(model.scale)
    made = enlarge(photo, model)
    write_whole(kept, encode_png(made))
    return made, float(model.scale)
